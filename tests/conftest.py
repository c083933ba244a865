"""What every test shares: how hypothesis runs."""

import os

from hypothesis import HealthCheck, settings

# A busy machine makes single examples slow; the timeout of the whole test is the guard. In CI the
# examples are the same in every run, so that a failure belongs to the change that shows it.
settings.register_profile(
    "local", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
