"""What every test shares: how hypothesis runs, and cores that no server outside has taken."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Kernels run in Triton's interpreter here, which must be chosen before anything imports triton, as
# transformers does. On a card: TRITON_INTERPRET=0.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine makes single examples slow; the timeout of the whole test is the guard. In CI the
# examples are the same in every run, so that a failure belongs to the change that shows it.
settings.register_profile(
    "local", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session", autouse=True)
def own_runtime_directory() -> Iterator[None]:
    """Servers of other runs on this machine change no placement here."""
    with tempfile.TemporaryDirectory(prefix="hearth-test-run-") as path:
        former = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = path
        yield
        if former is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = former
