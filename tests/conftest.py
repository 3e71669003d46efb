"""How tests are spread over processes."""

from __future__ import annotations

from typing import Any

import pytest

SHARING = {
    *(
        f"tests/cli/test_{name}.py"
        for name in ("compare", "example_package", "exits", "explain", "export", "interrupt", "resume")
    ),
    "tests/browser/test_report_page.py",
}
"""Files whose tests share what takes long to make; in one process it is made once."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a SHARING file in one process, and hand out all others one by one.

    Not xdist's own groups: they rename tests by an attribute that pytest 9.2 does not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in SHARING else nodeid

    return Scheduling(config, log)
