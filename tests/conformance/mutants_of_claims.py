"""Mutants that say what is not so: whether they are here, which devices there are, and what those can do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from good_backend import HALVES, INTEGERS, REALS, Arriving, Mail, MailBackend, Tensor, reduced
from mutant import caught_by

from devices import Capabilities, Communicator, Device, Group, Link, Probe
from devices.errors import UnsupportedError

# Whether it is here.


@caught_by("probe.repeatable")
class ItIsAbsentWithDevices(MailBackend):
    def probe(self) -> Probe:
        return Probe(present=False, reason="the post office is shut")


@caught_by("probe.reason")
class ProbeRaises(MailBackend):
    def probe(self) -> Probe:
        raise OSError("no such device: /dev/mail0")


@caught_by("probe.quick")
class ProbeTakesItsTime(MailBackend):
    def probe(self) -> Probe:
        time.sleep(1.1)
        return super().probe()


@caught_by("probe.reason")
class ProbeGivesNoReason(MailBackend):
    def probe(self) -> Probe:
        return Probe(present=True, reason="")


@caught_by("probe.reason")
class ProbeReturnsABool(MailBackend):
    def probe(self) -> Probe:
        return True  # type: ignore[return-value]


@caught_by("probe.repeatable")
class ProbeDiffersFromCallToCall(MailBackend):
    calls = itertools.count()

    def probe(self) -> Probe:
        return Probe(present=next(self.calls) % 2 == 0, reason="every machine has a post")


@caught_by("probe.reason")
class ProbeSaysPresentByANumber(MailBackend):
    def probe(self) -> Probe:
        return Probe(present=4, reason="four desks")  # type: ignore[arg-type]


# What kind it is.


@caught_by("backend.attributes")
class ThePriorityIsAWord(MailBackend):
    priority = "high"  # type: ignore[assignment]


@caught_by("backend.attributes")
class TheInterfaceIsOfNextYear(MailBackend):
    interface = 99


# Which devices there are.


@caught_by("devices.order")
class DevicesShareAnIndex(MailBackend):
    def devices(self) -> Sequence[Device]:
        return [replace(device, index=0) for device in super().devices()]


@caught_by("devices.order")
class DevicesComeInReverse(MailBackend):
    def devices(self) -> Sequence[Device]:
        return super().devices()[::-1]


@caught_by("devices.memory")
class DevicesHaveNegativeMemory(MailBackend):
    def devices(self) -> Sequence[Device]:
        return [replace(device, memory=-1) for device in super().devices()]


@caught_by("devices.memory")
class MoreMemoryIsFreeThanThereIs(MailBackend):
    def devices(self) -> Sequence[Device]:
        return [replace(device, free=1 << 40) for device in super().devices()]


@caught_by("devices.own")
class DevicesAreOfAnotherBackend(MailBackend):
    def devices(self) -> Sequence[Device]:
        return [replace(device, backend="male") for device in super().devices()]


@caught_by("devices.own")
class DevicesAreOfAnotherType(MailBackend):
    def devices(self) -> Sequence[Device]:
        return [replace(device, type="cuda") for device in super().devices()]


@caught_by("devices.alike")
class DevicesChangeFromCallToCall(MailBackend):
    calls = itertools.count(4)

    def devices(self) -> Sequence[Device]:
        return [Device(self.name, "cpu", index) for index in range(next(self.calls))]


# What they can do.


class _Claiming(MailBackend):
    """Changes what is claimed."""

    def capabilities(self, device: Device) -> Capabilities:
        return self.claimed(super().capabilities(device))

    def claimed(self, good: Capabilities) -> Capabilities:
        raise NotImplementedError


@caught_by("capabilities.equal")
class CapabilitiesChangeFromCallToCall(_Claiming):
    calls = itertools.count()

    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, max_groups=1000 + next(self.calls))


@caught_by("capabilities.equal")
class CapabilitiesDifferBetweenEqualDevices(_Claiming):
    def capabilities(self, device: Device) -> Capabilities:
        good = super(_Claiming, self).capabilities(device)
        return replace(good, max_streams=id(device))


@caught_by("capabilities.dtypes")
class DtypesAreClaimedByName(_Claiming):
    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, dtypes=frozenset({*good.dtypes, "float32"}))


@caught_by("capabilities.dtypes")
class ADtypeIsClaimedThatNoTensorCanHave(_Claiming):
    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, dtypes=good.dtypes | {torch.quint4x2})


@caught_by("capabilities.reductions")
class ReductionsAreClaimedOnDtypesThatAreNot(_Claiming):
    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, dtypes=good.dtypes - {torch.float64})


@caught_by("capabilities.reductions")
class AReduceOpIsClaimedThatDoesNotExist(_Claiming):
    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, reductions={**good.reductions, "median": REALS})


@caught_by("capabilities.reductions")
class AReductionIsClaimedThatHasNoMeaning(_Claiming):
    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, reductions={**good.reductions, "bxor": INTEGERS | REALS})


@caught_by("verbs.all_reduce")
class AReductionIsClaimedThatIsNotThere(_Claiming):
    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, reductions={**good.reductions, "sum": INTEGERS | REALS | {torch.complex64}})

    class communicator(Mail):  # noqa: N801 - the name that the backend looks for
        def all_reduce(self, tensor: Tensor, op: str) -> Arriving:
            if tensor.is_complex():
                raise UnsupportedError(f"all_reduce of {tensor.dtype} is not done here")
            return super().all_reduce(tensor, op)


@caught_by("verbs.all_reduce")
class ComplexNumbersAreClaimedAndLoseTheirImaginaryPart(_Claiming):
    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, reductions={**good.reductions, "sum": INTEGERS | REALS | {torch.complex64}})

    class communicator(Mail):  # noqa: N801 - the name that the backend looks for
        def reduce_into(self, target: Tensor, op: str, letters: Sequence[Tensor], own: Tensor) -> None:
            super().reduce_into(target, op, letters, own)
            if target.is_complex():
                target.detach().imag.zero_()


@caught_by("verbs.all_reduce")
class HalfFloatsAreClaimedForAvgAndAddedUpFirst(Mail):
    # The sum of large numbers is infinite before it is divided.
    def reduce_into(self, target: Tensor, op: str, letters: Sequence[Tensor], own: Tensor) -> None:
        super().reduce_into(target, op, letters, own)
        if op == "avg" and own.dtype in HALVES:
            parts = [letter.view(own.dtype) for letter in letters]
            parts.insert(self.rank, own.detach())
            target.detach().copy_(reduced("sum", parts) / self.size)


@caught_by("capabilities.group_sizes")
class GroupsOfThreeAreClaimedAndRefused(MailBackend):
    def open(self, group: Group) -> Communicator:
        if group.size == 3:
            raise UnsupportedError(f"{group}: groups have 2 or 4 ranks")
        return super().open(group)


@caught_by("capabilities.max_groups")
class ManyGroupsAreClaimedAndRefused(_Claiming):
    opened = 0

    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, max_groups=16)

    def open(self, group: Group) -> Communicator:
        if group.rank == 0:
            type(self).opened += 1
        if self.opened > 4:
            raise UnsupportedError(f"{group}: 4 groups are open already")
        return super().open(group)


@caught_by("capabilities.links")
class ALinkLeadsNowhere(_Claiming):
    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, links=(*good.links, Link("mail:99", "a corridor")))


@caught_by("capabilities.links")
class ALinkLeadsBackToItsDevice(MailBackend):
    def capabilities(self, device: Device) -> Capabilities:
        good = super().capabilities(device)
        return replace(good, links=(*good.links, Link(str(device), "a corridor")))


@caught_by("capabilities.links")
class ALinkIsNegativelyFast(_Claiming):
    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, links=tuple(replace(link, bandwidth=-1.0) for link in good.links))


@caught_by("capabilities.limits")
class GroupSizesAreNegative(_Claiming):
    def claimed(self, good: Capabilities) -> Capabilities:
        return replace(good, group_sizes=frozenset({-2, 2, 3, 4}))
