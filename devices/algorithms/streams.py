"""Work on a device's streams, which `wait` orders before what the current stream does next; the host goes on."""

from __future__ import annotations

from typing import final

import torch


@final
class OnStream:
    """All that the current stream has been told to do. A `Pending`.

    Args:
        device: the stream's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.accelerator.current_stream(device).record_event()

    def wait(self) -> None:
        torch.accelerator.current_stream(self._device).wait_event(self._event)

    def is_completed(self) -> bool:
        return self._event.query()
