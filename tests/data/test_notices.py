"""A notice is given once for each file and message."""

import logging

from cellseg_d2.data.notices import log_once


def test_once_for_each_file_and_message(caplog, tmp_path) -> None:
    logger = logging.getLogger("test_notices")
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            log_once(logger, logging.WARNING, first, "%d pages", 2)
            log_once(logger, logging.INFO, first, "scaled")
            log_once(logger, logging.WARNING, second, "%d pages", 3)
    assert caplog.messages == [f"{first}: 2 pages", f"{first}: scaled", f"{second}: 3 pages"]
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO", "WARNING"]
