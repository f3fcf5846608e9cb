"""docs/kubernetes.yaml, each of its pods being a host: there is no Kubernetes here, its part is played as documented.

What it gives a pod of an Indexed Job: the host name "<job>-<index>", the variable JOB_COMPLETION_INDEX, its own full
name in /etc/hosts, and, by the headless Service, "<job>-<index>.<subdomain>", short and full, in the name service.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import ROOT
from network import ADDRESSES, TwoHosts, missing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="needs the package PyYAML, which is not installed")
    return {each["kind"]: each for each in yaml.safe_load_all((ROOT / "docs" / "kubernetes.yaml").read_text())}


def test_the_service_selects_the_pods_of_the_job_and_gives_them_names(manifests: dict[str, dict[str, Any]]) -> None:
    service, job = manifests["Service"], manifests["Job"]
    assert service["spec"]["clusterIP"] == "None"
    # The label that Kubernetes itself puts on the pods of a Job.
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]


def test_the_pods_of_the_job_run_the_quickstart_together(manifests: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    spec = manifests["Job"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 2
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    pods = [f"{manifests['Job']['metadata']['name']}-{index}" for index in range(2)]
    domains = (f"{pod['subdomain']}.default.svc.cluster.local", pod["subdomain"])
    own = [f"{ADDRESSES[at]} {name}.{domains[0]} {name}\n" for at, name in enumerate(pods)]
    service = "".join(f"{ADDRESSES[at]} {name}.{domain}\n" for domain in domains for at, name in enumerate(pods))
    etc_hosts = [name + service for name in own]
    # The image's part: `torchrun` and the installed package.
    (tmp_path / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    image = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "PYTHONPATH")}
    image["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    with TwoHosts(pods, etc_hosts, tmp_path) as hosts:
        for at in range(2):
            hosts.start(at, container["command"], ROOT, {**image, **given, "JOB_COMPLETION_INDEX": str(at)})
        first, second = hosts.finish(100)
    assert "rank 0 of 4 on cpu: 4 ranks met at train-0.devices." in first
    assert "ranks, gathered                                [0.0, 1.0, 2.0, 3.0]     as expected" in first
    assert "as expected" not in second
