"""How a verb over any tensors becomes calls over flat ones."""
