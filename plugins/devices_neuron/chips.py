"""The generations of Neuron chips, what the driver calls them, and what the catalogue says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices.catalogue import Target


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of chips.

    Args:
        name: what the driver's `device_name` says.
        target: the chip's name in the catalogue; "" for one that is not there.
        instance: what the driver's `instance_type` says, and what the names of its instances begin with.
        device_arch: what the driver's `arch_type` of a chip says.
        core_arch: what the driver's `arch_type` of a core says.
        pci: the device ids that its chips have on the PCI bus.
        is_supported: whether native TorchNeuron runs on it.
    """

    name: str
    target: str
    instance: str
    device_arch: str
    core_arch: str
    pci: tuple[str, ...]
    is_supported: bool = False

    def __str__(self) -> str:
        return self.name

    def figures(self, lnc: int | None = None) -> Target | None:
        """Return what the catalogue says of the chip, at a setting of LNC or at its default."""
        from devices import catalogue

        return catalogue.load(self.target, lnc=lnc) if self.target else None

    @property
    def cores(self) -> int | None:
        """How many physical NeuronCores a chip has."""
        return self._figure("cores")

    @property
    def memory(self) -> int | None:
        """Bytes of memory of a chip."""
        return self._figure("memory")

    @property
    def default_lnc(self) -> int | None:
        """How many physical cores are one logical core, where nobody says otherwise."""
        return self._figure("default_lnc")

    @property
    def lnc(self) -> tuple[int, ...]:
        """The settings of LNC that there are."""
        target = self.figures()
        value = target.figure("lnc").value if target is not None else None
        return tuple(each for each in value if isinstance(each, int)) if isinstance(value, tuple) else ()

    def _figure(self, name: str) -> int | None:
        target = self.figures()
        value = target.figure(name).value if target is not None else None
        return value if isinstance(value, int) and not isinstance(value, bool) else None


GENERATIONS = (
    Generation("Inferentia", "", "Inf1", "NDv1", "NCv1", ()),
    Generation("Trainium1", "trainium1", "Trn1", "NDv2", "NCv2", ("0x7164",)),
    # Of the chip the driver says NDv3, as of a Trainium2, and of its cores NCv2, as of a Trainium1's.
    Generation("Inferentia2", "inferentia2", "Inf2", "NDv3", "NCv2", ("0x7264",)),
    Generation("Trainium2", "trainium2", "Trn2", "NDv3", "NCv3", ("0x7364",), is_supported=True),
    Generation("Trainium3", "trainium3", "Trn3", "NDv4", "NCv4", ("0x7564", "0x7565"), is_supported=True),
)
"""All that there are. The names are those of the driver (aws-neuron-driver 2.24.7, and 2.31 for Trainium3)."""

_MACHINES = {
    ("trainium1", 16): "trn1.32xlarge",
    ("inferentia2", 6): "inf2.24xlarge",
    ("inferentia2", 12): "inf2.48xlarge",
    ("trainium2", 16): "trn2.48xlarge",
    ("trainium3", 4): "trainium3-gen2-machine",
    ("trainium3", 16): "trainium3-gen1-machine",
}


def by_instance(instance_type: str) -> Generation | None:
    """Return the generation of an instance type: Trainium2 of "trn2.48xlarge" and "trn2u.48xlarge"."""
    for generation in GENERATIONS:
        if instance_type.startswith(generation.instance.lower()):
            return generation
    return None


def machine(generation: Generation, chips: int) -> Target | None:
    """Return the machine of the catalogue that has so many chips of that generation."""
    from devices import catalogue

    name = _MACHINES.get((generation.target, chips))
    return catalogue.load(name) if name else None
