"""What is known of a machine's GPUs and what they hang on, as frozen data: from NVML, from text, or from a file."""

from __future__ import annotations

from dataclasses import dataclass

MAX_LINKS = 36
"""NVML_NVLINK_MAX_LINKS: no GPU has more NVLinks."""

ANCESTORS = ("internal", "single", "multiple", "hostbridge", "node", "system")
"""What two PCI devices share, the nearest first: a board, a PCIe switch, several, a host bridge, a NUMA node, less."""

REMOTES = ("gpu", "switch", "npu", "unknown")
"""What an NVLink may lead to. NVML has no word for another maker's accelerator."""

FABRIC_STATES = ("not supported", "not started", "in progress", "completed")
"""How far a GPU has come with joining the NVLink domain of its rack."""

CLIQUE_TYPES = ("unicast pointer", "multicast pointer", "unicast logical endpoint", "multicast logical endpoint")
"""What the members of a clique of an NVLink domain can do with each other's memory."""


@dataclass(frozen=True, slots=True)
class NvLink:
    """One NVLink that is up.

    Args:
        number: which of the GPU's links it is.
        version: "4.0" say, of the link and not NVML's code for it; None when unknown.
        remote: one of `REMOTES`; None when unknown.
        peer: the PCI address of what it leads to; None when unknown.
    """

    number: int
    version: str | None = None
    remote: str | None = None
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class Clique:
    """One of the cliques that a GPU belongs to.

    Args:
        type: one of `CLIQUE_TYPES`; None for one that is not known here.
        id: equal ids in one domain are one clique.
    """

    type: str | None
    id: int


@dataclass(frozen=True, slots=True)
class Fabric:
    """A GPU's membership of an NVLink domain that spans machines.

    Args:
        state: one of `FABRIC_STATES`; only "completed" makes it a member.
        cluster: the domain's UUID, 32 hexadecimal digits; None while there is none.
        cliques: those of the domain that the GPU is in.
        status: NVML's error code of having joined, 0 for none.
        health: "healthy", "unhealthy" or "limited capacity"; None when the driver does not say.
    """

    state: str
    cluster: str | None = None
    cliques: tuple[Clique, ...] = ()
    status: int = 0
    health: str | None = None

    @property
    def domain(self) -> str | None:
        """What the members of one domain that may use its links share: cluster and clique; None for no member."""
        if self.state != "completed" or self.status != 0 or self.cluster is None:
            return None
        pointers = [clique.id for clique in self.cliques if clique.type == "unicast pointer"]
        return f"{self.cluster}.{pointers[0]}" if pointers else None


@dataclass(frozen=True, slots=True)
class MigInstance:
    """A part of a GPU that is used as if it were one.

    Args:
        uuid: as `nvidia-smi -L` prints it: "MIG-...".
        name: what its maker calls it; "" when unknown.
        memory: bytes of memory in all; None when unknown.
        free: bytes of it that were free; None when unknown.
    """

    uuid: str
    name: str = ""
    memory: int | None = None
    free: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. What nobody says is None.

    Args:
        index: NVML's, which is the order on the PCI bus.
        uuid: "GPU-...".
        name: what its maker calls it; "" when unknown.
        pci: its PCI address, "0000:1b:00.0" say.
        memory: bytes of memory in all.
        free: bytes of it that were free.
        capability: its compute capability, (9, 0) say.
        numa: the NUMA node of the host that it is nearest to.
        memory_numa: the NUMA node that its own memory is, on machines that have such.
        pcie_generation: the highest that GPU and slot have in common.
        pcie_width: lanes.
        nvlinks: those that are up; an empty tuple if it has none.
        fabric: its NVLink domain.
        mig: whether it is divided into instances.
        instances: those, if it is.
        path: the PCI addresses from the host bridge down to the GPU, it included.
        fault: what NVML says instead of letting it be opened.
    """

    index: int
    uuid: str | None = None
    name: str = ""
    pci: str | None = None
    memory: int | None = None
    free: int | None = None
    capability: tuple[int, int] | None = None
    numa: int | None = None
    memory_numa: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    nvlinks: tuple[NvLink, ...] | None = None
    fabric: Fabric | None = None
    mig: bool | None = None
    instances: tuple[MigInstance, ...] = ()
    path: tuple[str, ...] | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Nic:
    """One network device.

    Args:
        name: the kernel's, "mlx5_0" say.
        pci: its PCI address.
        numa: the NUMA node of the host that it is nearest to.
        path: the PCI addresses from the host bridge down to it, it included.
        rdma: whether it is listed as one of RDMA.
    """

    name: str
    pci: str | None = None
    numa: int | None = None
    path: tuple[str, ...] | None = None
    rdma: bool | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """What two GPUs have in common.

    Args:
        first: the lower index.
        second: the higher.
        ancestor: one of `ANCESTORS`: the PCI devices between them; None when unknown.
        nvlinks: how many NVLinks `nvidia-smi` counts between them, through switches or not; None if not asked.
        over_nvlink: whether each reaches the other's memory over NVLink.
        read: whether each may read the other's memory, over whatever.
        write: whether each may write it.
    """

    first: int
    second: int
    ancestor: str | None = None
    nvlinks: int | None = None
    over_nvlink: bool | None = None
    read: bool | None = None
    write: bool | None = None


@dataclass(frozen=True, slots=True)
class Nearness:
    """What a GPU and a network device have in common.

    Args:
        gpu: the GPU's index.
        nic: the network device's name.
        ancestor: one of `ANCESTORS`.
    """

    gpu: int
    nic: str
    ancestor: str


@dataclass(frozen=True, slots=True)
class Machine:
    """One host's GPUs.

    Args:
        source: where all this comes from, in words.
        gpus: in the order of their indices.
        nics: the network devices.
        pairs: what each two GPUs have in common, as far as is known.
        nearness: what GPUs and network devices have in common, where no paths say it.
        driver: the driver's version.
        cuda: the highest version of CUDA that the driver serves.
        unanswered: what was asked and not answered, in words, for whoever wonders why something is unknown.
    """

    source: str
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    pairs: tuple[Pair, ...] = ()
    nearness: tuple[Nearness, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    unanswered: tuple[str, ...] = ()

    def pair(self, one: int, other: int) -> Pair | None:
        """Return what two GPUs have in common, by their indices; None if nothing is known."""
        wanted = (min(one, other), max(one, other))
        return next((pair for pair in self.pairs if (pair.first, pair.second) == wanted), None)
