"""What the tests of whole systems share: one thread a rank, and a headless Chromium, one for all tests."""

import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Ranks that tests start have one thread each; more of them here would only contend with theirs."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> None:
    """What tests start inherits the signals that are ignored. Under nohup that is SIGHUP, which launchers answer."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        # A handler is not inherited, and these tests still outlive their terminal.
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(OPTIONS))
        yield browser
        browser.close()
