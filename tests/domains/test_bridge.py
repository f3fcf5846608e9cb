"""What a rank says of messages between domains that it could not take."""

from __future__ import annotations

import pytest
import torch

from devices._staged import _Landing
from devices.algorithms.started import DONE
from devices.domains.bridge import Crossing
from devices.errors import CollectiveError


def test_an_error_of_a_ranks_own_device_is_not_said_to_be_its_peers() -> None:
    # Its places are one, so that nothing can be copied there.
    target = torch.zeros(1).expand(4)
    landing = _Landing(DONE, [(target, torch.ones(4))], "rank 5 of 8")
    crossing = Crossing([(3, landing)], None, lambda peer, error: CollectiveError(f"rank {peer} is lost: {error}"))
    with pytest.raises(CollectiveError, match=r"^rank 5 of 8: 16 bytes that came to host memory could not be copied"):
        crossing.wait()
