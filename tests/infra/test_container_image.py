"""The image's recipe: its context, its user, its pins; and its install steps, run in a directory of their own."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.manifests import KUBERNETES, ROOT

DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UV = shutil.which("uv") or str(ROOT / ".bootstrap" / "bin" / "uv")


def instructions() -> list[tuple[str, str]]:
    """The recipe's instructions in order, comments left out and continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def all_of(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def arguments() -> dict[str, str]:
    return dict(rest.split("=", 1) for rest in all_of("ARG"))


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path in: the last pattern that matches it, or a directory above it, decides."""
    ancestors = [str(Path(*Path(path).parts[: n + 1])) for n in range(len(Path(path).parts))]
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.startswith("!")
        pattern = pattern.removeprefix("!")
        if any(_matches(pattern, ancestor) for ancestor in ancestors):
            kept = wanted
    return kept


def _matches(pattern: str, path: str) -> bool:
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatchcase(part, pattern.removeprefix("**/")) for part in path.split("/"))
    return fnmatch.fnmatchcase(path, pattern) and path.count("/") == pattern.count("/")


def copied() -> list[str]:
    """What the recipe copies out of its context."""
    return [source for rest in all_of("COPY") if "--from" not in rest for source in shlex.split(rest)[:-1]]


def test_everything_it_copies_is_there_and_in_its_context() -> None:
    assert "uv.lock" in copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert in_context(source), source


def test_every_package_of_the_wheel_is_copied() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) <= set(copied())


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".venv/bin/python", ".bootstrap/bin/uv", "tests/rotation/test_kill.py", "docs/kubernetes.md",
        "infra/lab/up.py", "infra/terraform/main.tf", "capstan/__pycache__/config.cpython-311.pyc", ".env",
    ],
)  # fmt: skip
def test_history_environments_tests_and_the_lab_stay_out_of_the_context(path: str) -> None:
    assert not in_context(path)


@pytest.mark.parametrize("path", ["capstan/cli/rotate.py", "infra/kubernetes/work-pool.json", "flows/linkerd.py"])
def test_the_product_is_in_the_context(path: str) -> None:
    assert (ROOT / path).exists()
    assert in_context(path)


def test_bases_are_pinned_by_tag_and_python_is_the_one_that_is_supported() -> None:
    defaults = arguments()
    bases = [re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], rest.split()[0]) for rest in all_of("FROM")]
    assert len(bases) == 3
    for base in bases:
        name, _, tag = base.rpartition(":")
        assert name
        assert re.match(r"\d+\.\d+\.\d+", tag), base
    assert defaults["PYTHON"].startswith(PROJECT["requires-python"].removeprefix(">="))


def test_it_runs_as_a_user_that_is_not_root_and_the_one_of_the_manifests() -> None:
    (user,) = all_of("USER")
    assert user == "10001:10001"
    for file in (KUBERNETES / "worker" / "worker.yaml", KUBERNETES / "work-pool.json"):
        assert re.search(r"runAsUser\"?: 10001\b", file.read_text())
    last = [word for word, _ in instructions()]
    assert "RUN" not in last[last.index("USER") :], "nothing is installed as the user"


def test_it_says_what_it_is() -> None:
    (labels,) = all_of("LABEL")
    names = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", labels))
    assert names == {"title", "description", "licenses", "version", "revision", "created"}
    assert PROJECT["description"] in labels
    assert arguments()["VERSION"] == PROJECT["version"]


def test_the_health_check_asks_the_page_that_the_worker_serves() -> None:
    from prefect.settings import get_current_settings

    (check,) = all_of("HEALTHCHECK")
    (command,) = all_of("CMD")
    assert "--with-healthcheck" in json.loads(command)
    assert f"127.0.0.1:{get_current_settings().worker.webserver.port}/health" in check


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_install_steps_give_the_commands_from_the_lock_file_alone(tmp_path: Path) -> None:
    if not Path(UV).exists():
        pytest.skip("uv is not here")
    context, environment = tmp_path / "src", tmp_path / "opt"
    copy_context(context)
    steps = [rest.removeprefix("--mount=type=cache,target=/root/.cache/uv ") for rest in all_of("RUN") if "uv " in rest]
    assert len(steps) == 2
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("UV_", "VIRTUAL_ENV", "PYTHON"))},
        "UV_PROJECT_ENVIRONMENT": str(environment), "UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never",
        "UV_OFFLINE": "1", "PATH": f"{Path(UV).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    for step in steps:
        done = subprocess.run(
            shlex.split(step), cwd=context, env=variables, capture_output=True, text=True, timeout=400, check=False
        )
        if "--offline" in done.stderr or "network" in done.stderr.lower():
            pytest.skip("uv's cache does not hold every locked package, and nothing is downloaded here")
        assert done.returncode == 0, done.stderr
    shutil.rmtree(context)  # what was installed does not point back at its source
    version = subprocess.run([environment / "bin" / "capstan", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip().endswith(PROJECT["version"])
    look = (
        "import importlib.util as u, importlib.resources as r, flows.linkerd;"
        "print([u.find_spec(name) is None for name in ('pytest', 'infra.lab')],"
        "r.files('infra').joinpath('kubernetes/work-pool.json').is_file())"
    )
    quiet = {**variables, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    found = subprocess.run(
        [environment / "bin" / "python", "-c", look],
        cwd=tmp_path,
        env=quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.strip() == "[True, True] True", found.stderr


def copy_context(to: Path) -> None:
    """What an engine would send to the builder, of what the recipe copies."""
    for source in copied():
        origin = ROOT / source
        for file in [origin] if origin.is_file() else origin.rglob("*"):
            relative = file.relative_to(ROOT)
            if file.is_file() and in_context(str(relative)):
                (to / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to / relative)
