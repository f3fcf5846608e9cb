"""All mutants, by name: `MUTANTS`."""

import mutants_of_claims  # noqa: F401 - each makes its own known
import mutants_of_gradients  # noqa: F401
import mutants_of_life  # noqa: F401
import mutants_of_order  # noqa: F401
import mutants_of_programs  # noqa: F401
import mutants_of_results  # noqa: F401
from mutant import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant"]
