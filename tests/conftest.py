"""What holds for every test: no network, a home of its own, one thread a worker, the same examples each time."""

import os

import hypothesis
import pytest

# Set before any library reads them; the workers of xdist share the cores among themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# A failure seen once is seen by everybody; to look for new ones: --hypothesis-profile=search.
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None, max_examples=100)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("repeat")


@pytest.fixture(scope="session", autouse=True)
def home_of_the_tests(tmp_path_factory):
    """Whatever finds no other home keeps its files here, and not in the user's."""
    os.environ["SHOAL_HOME"] = str(tmp_path_factory.mktemp("shoal-home"))
