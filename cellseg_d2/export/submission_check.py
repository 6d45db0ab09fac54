"""The check of a submission: every fault in the file, and the figures that describe it.

The file may come from anywhere and hold anything. It is read one prediction at a time, its run
lengths are decoded by `rle_counts` and never by code that trusts them, and what is wrong with it
ends up in the report and not in an exception. 100,000 predictions of usual size take about 6 s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from typing import TextIO

from .entry_check import EntryChecker, shown
from .image_index import index_images
from .json_stream import JsonListError, iter_json_list
from .submission_file import SubmissionFileError, open_submission

# A list of faults is held in memory; it ends here, and says so.
MAX_FAULTS = 1_000_000
_SHOWN_IDS = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        index: the prediction's place in the list, from 0; None for a fault of the whole file.
        image_id: the prediction's image id, where it has a usable one.
        field: the field at fault, such as "score" or "segmentation.counts"; "" for none.
        message: what was found and what was expected.
    """

    index: int | None
    image_id: int | None
    field: str
    message: str

    def __str__(self) -> str:
        where = [] if self.index is None else [f"prediction {self.index}"]
        where += [] if self.image_id is None else [f"image {self.image_id}"]
        return ", ".join(where + ([self.field] if self.field else [])) + (
            f": {self.message}" if where or self.field else self.message
        )


@dataclass
class SubmissionReport:
    """What a submission holds.

    Attributes:
        total: number of predictions, faulty ones included.
        image_ids: the image ids that occur, ascending.
        category_ids: the category ids that occur, ascending; ids out of range included.
        score_range: lowest and highest finite score; None without any.
        faults: everything that is wrong, in the order of the file.
        warnings: what is allowed but probably not meant.
    """

    total: int = 0
    image_ids: list[int] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    score_range: tuple[float, float] | None = None
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The report as text: report 1's four figures, then warnings, then every fault."""
        yield f"Total predictions: {self.total}"
        yield f"Unique image IDs: {len(self.image_ids)}"
        yield f"Unique category IDs: {self.category_ids}"
        if self.score_range is None:
            yield "Score range: none"
        else:
            yield "Score range: [{:.3f}, {:.3f}]".format(*self.score_range)
        for warning in self.warnings:
            yield f"warning: {warning}"
        for fault in self.faults:
            yield f"fault: {fault}"
        yield f"{len(self.faults)} fault{'' if len(self.faults) == 1 else 's'} found"


def check_submission(
    predictions_path: str | PathLike[str],
    *,
    id_map: str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None,
    num_classes: int = 4,
    require_all: bool = False,
) -> SubmissionReport:
    """Checks a submission, a `.json` file or a zip of one.

    Args:
        predictions_path: the file.
        id_map: the JSON file with the images' ids and sizes; image ids and mask sizes are checked
            against it.
        images: the folder of images; without `id_map`, ids count from 1 in sorted order. Only
            headers are read.
        num_classes: K; category ids are 1 to K.
        require_all: an image without predictions is a fault instead of a warning.

    Returns:
        the figures and every fault found; a file that ends in broken JSON is checked up to there.

    Raises:
        CellDataError: the id map or the folder of images cannot be used.
        OSError: there is no such file, or it cannot be read.
    """
    known, image_faults = index_images(id_map, images)
    report = SubmissionReport()
    report.faults += [Fault(None, None, "", str(fault)) for fault in image_faults]
    checker = EntryChecker(known if id_map or images else None, num_classes)
    try:
        with open_submission(predictions_path) as opened:
            report.faults += [Fault(None, None, "", message) for message in opened.faults]
            report.warnings += opened.warnings
            _check_entries(opened.stream, checker, report)
    except JsonListError as fault:
        report.faults.append(Fault(None, None, "", f"not a JSON list of predictions: {fault}"))
    except UnicodeDecodeError as error:
        report.faults.append(Fault(None, None, "", f"not UTF-8 text: {error.reason}"))
    except SubmissionFileError as error:
        report.faults.append(Fault(None, None, "", f"not a usable file: {error}"))

    report.image_ids = sorted(checker.image_ids)
    report.category_ids = sorted(checker.category_ids)
    if checker.scores is not None:
        report.score_range = checker.scores
    if checker.duplicates:
        report.warnings.append(
            f"{checker.duplicates} predictions repeat the image and mask of an earlier one"
        )
    lacking = sorted(image_id for image_id, image in known.items() if image.path is None)
    if images is not None and lacking:
        report.warnings.append(
            f"{len(lacking)} of {len(known)} images are not in {images}, so that the "
            f"id map alone says what size they have: ids {_listed(lacking)}"
        )
    absent = sorted(known.keys() - checker.image_ids)
    if absent and require_all:
        report.faults += [Fault(None, image_id, "", "no predictions") for image_id in absent]
    elif absent:
        report.warnings.append(
            f"{len(absent)} of {len(known)} images have no predictions: ids {_listed(absent)}"
        )
    if report.total == 0 and not report.faults:
        report.warnings.append("the file holds no predictions")
    return report


def _check_entries(stream: TextIO, checker: EntryChecker, report: SubmissionReport) -> None:
    for index, element in enumerate(iter_json_list(stream)):
        report.total += 1
        image_id, found = checker.check(element.value)
        for key in element.repeated_keys:
            found.append((shown(key), "stands twice in one object"))
        report.faults += [Fault(index, image_id, name, message) for name, message in found]
        if len(report.faults) >= MAX_FAULTS:
            report.faults.append(
                Fault(None, None, "", f"over {MAX_FAULTS} faults: the rest is not checked")
            )
            return


def _listed(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:_SHOWN_IDS]))
    return shown if len(ids) <= _SHOWN_IDS else f"{shown} and {len(ids) - _SHOWN_IDS} more"
