from __future__ import annotations

import signal

import pytest
import torch

from tests.one_tls_context import share_tls_context


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-cases", type=int, default=400, help="requests of tests/actors/test_http_fuzz.py"
    )


def pytest_configure() -> None:
    # What a shell starts in the background ignores it, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    share_tls_context()


@pytest.fixture(autouse=True, scope="session")
def one_compute_thread() -> None:
    """Tests run many ranks at once; more threads than cores make each of them far slower."""
    torch.set_num_threads(1)
