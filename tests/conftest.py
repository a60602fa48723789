from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-cases", type=int, default=400, help="requests of tests/actors/test_http_fuzz.py"
    )


@pytest.fixture(autouse=True, scope="session")
def one_compute_thread() -> None:
    """Tests run many ranks at once; more threads than cores make each of them far slower."""
    torch.set_num_threads(1)
