"""The printed table ends in lines that scripts can read."""

from cellseg_d2.evaluation import score_table


def test_lines_and_missing_scores() -> None:
    scores = {"AP": 41.234, "AP50": 87.3, "AP75": 0.0, "APs": float("nan")}
    text = score_table({"segm": scores | {"AP-a": 12.0, "AP50-a": float("nan")}})
    assert text.endswith("segm AP: 41.2\nsegm AP50: 87.3\nsegm AP75: 0.0")
    assert "n/a" in text and "nan" not in text
