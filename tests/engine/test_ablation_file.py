"""The YAML of an ablation, and each that is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.data import CellDatasetMapper, load_cell_dicts
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.engine.ablation_file import Ablation, Evaluation, Split, Variant, read_ablation
from cellseg_d2.engine.best_model import best_metric
from cellseg_d2.engine.solver import epochs_to_iterations
from cellseg_d2.modeling.parameter_count import count_parameters

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
SHIPPED = [CONFIGS / "ablations" / f"report{n}.yaml" for n in range(1, 6)]

# What the variants of a table may differ in, in the small form: the factor and what belongs to it.
FACTORS = {
    "report1": (
        "SOLVER.OPTIMIZER",
        "MODEL.FPN.NORM",
        "MODEL.RPN.CONV_DIMS",
        "MODEL.ROI_BOX_HEAD.",
        "MODEL.ROI_MASK_HEAD.NORM",
    ),
    "report2": ("MODEL.ROI_MASK_HEAD.LOSS",),
    "report3": ("MODEL.CENTER_BOUNDARY_HEAD.ENABLED",),
    "report4": (
        "MODEL.BACKBONE.NAME",
        "MODEL.RESNETS.OUT_FEATURES",
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "MODEL.RPN.IN_FEATURES",
        "MODEL.RPN.PRE_NMS_TOPK_",
        "MODEL.ROI_HEADS.NAME",
        "MODEL.ROI_HEADS.IN_FEATURES",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
        "MODEL.ROI_MASK_HEAD.NUM_CONV",
    ),
    "report5": ("MODEL.BACKBONE.NAME", "SOLVER.BASE_LR", "INPUT.CELL.RECIPE"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("VERSION: 2\n")
    (tmp_path / "sub").mkdir()
    return tmp_path / "sub"


def write(folder: Path, text: str) -> Path:
    path = folder / "ablation.yaml"
    path.write_text(text)
    return path


GOOD = """
base: ../a.yaml
seeds: [3, 1]
options: {X: 1, Y: all, Z: [[8], [16]]}
forms:
  cpu: {seeds: [9], options: {X: 2, Y: form, W: ""}}
  tiny: {}
variants:
  one:
  two:
    config: ../b.yaml
    options: {Y: variant}
    forms: {cpu: {options: {X: 3, Y: both}}}
"""


def test_the_full_form(folder: Path) -> None:
    shared = ("X", "1", "Y", "all", "Z", "[[8], [16]]")
    assert read_ablation(write(folder, GOOD)) == Ablation(
        "ablation",
        "",
        (3, 1),
        (
            Variant("one", folder.parent / "a.yaml", shared),
            Variant("two", folder.parent / "b.yaml", (*shared[:3], "variant", *shared[4:])),
        ),
    )


def test_evaluations(folder: Path) -> None:
    text = GOOD + "evaluations:\n  turned: {options: {TEST.TTA.ENABLED: True}}\n"
    found = read_ablation(write(folder, text)).evaluations
    assert found == (Evaluation("turned", ("TEST.TTA.ENABLED", "True")),)
    assert read_ablation(write(folder, GOOD)).evaluations == ()


def test_reference(folder: Path) -> None:
    name = read_ablation(write(folder, GOOD)).variants[-1].name
    assert read_ablation(write(folder, GOOD)).reference == ""
    assert read_ablation(write(folder, GOOD + f"reference: {name}\n")).reference == name
    for bad in ("no_such", "", "[a]"):
        with pytest.raises(ConfigError, match=rf"reference: no variant .*{name}"):
            read_ablation(write(folder, GOOD + f"reference: {bad}\n"))


def test_splits(folder: Path) -> None:
    text = GOOD + "splits:\n  left: {options: {V: [t1, t2]}}\n  right:\n"
    splits = read_ablation(write(folder, text)).splits
    assert splits == (Split("left", ("V", "['t1', 't2']")), Split("right", ()))
    assert read_ablation(write(folder, GOOD)).splits == (Split("", ()),)
    for bad, message in [
        ("splits:\n", "splits: none"),
        ("splits: {a/b: }\n", "cannot name a folder"),
        ("splits: {a: , A: }\n", "are one name"),
        ("splits: {a: {seeds: [1]}}\n", "unknown key 'seeds'"),
        ("evaluations:\n", "evaluations: none"),
        ("evaluations: {a/b: }\n", "cannot name a folder"),
        ("evaluations: {a: {options: {OUTPUT_DIR: x}}}\n", "OUTPUT_DIR is set for each run"),
        ("splits: {a: {options: {SEED: 1}}}\n", "SEED is set for each run"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_ablation(write(folder, GOOD + bad))


def test_what_is_more_particular_prevails(folder: Path) -> None:
    text = GOOD.replace("{X: 3, Y: both}", "{X: 3}")
    ablation = read_ablation(write(folder, text), "cpu")
    assert ablation.seeds == (9,) and ablation.form == "cpu"
    options = [dict(zip(v.options[::2], v.options[1::2], strict=True)) for v in ablation.variants]
    assert options == [
        {"X": "2", "Y": "form", "Z": "[[8], [16]]", "W": ""},
        {"X": "3", "Y": "variant", "Z": "[[8], [16]]", "W": ""},
    ]
    assert read_ablation(write(folder, GOOD), "cpu").variants[1].options[3] == "both"
    assert read_ablation(write(folder, GOOD), "tiny").seeds == (3, 1)


def test_values_reach_the_config_as_they_were_written(folder: Path) -> None:
    text = """
base: ../a.yaml
seeds: [1]
options:
  MODEL.WEIGHTS: ""
  SOLVER.BASE_LR: 1e-4
  SOLVER.AMP.ENABLED: False
  INPUT.MIN_SIZE_TRAIN: [0]
  INPUT.CROP.SIZE: [192, 192]
  MODEL.ANCHOR_GENERATOR.SIZES: [[8], [16]]
  SOLVER.OPTIMIZER: SGD
variants: {one: }
"""
    (variant,) = read_ablation(write(folder, text)).variants
    cfg = load_config(variant.config, variant.options)
    assert cfg.MODEL.WEIGHTS == "" and cfg.SOLVER.AMP.ENABLED is False
    assert cfg.SOLVER.BASE_LR == 1e-4 and cfg.SOLVER.OPTIMIZER == "SGD"
    assert cfg.INPUT.MIN_SIZE_TRAIN == (0,) and cfg.INPUT.CROP.SIZE == [192, 192]
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[8], [16]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [3, 1]", "seed: [3, 1]", "unknown key 'seed'; known: base"),
        ("{Y: variant}", "{Y: variant}\n    configs: x", "variants.two: unknown key 'configs'"),
        ("tiny: {}", "tiny: {variants: 3}", "forms.tiny: unknown key 'variants'"),
        ("{X: 3, Y: both}}}", "{X: 3}, seeds: [1]}}", "two.forms.cpu: unknown key 'seeds'"),
        ("forms: {cpu: {opt", "forms: {gpu: {opt", "two.forms: no form 'gpu'; .*cpu, tiny"),
        ("../b.yaml", "../c.yaml", r"variants.two: config .*c\.yaml: no such file"),
        ("../b.yaml", "[1]", r"variants.two: config is \[1\]"),
        ("base: ../a.yaml", "", "variants.one: no config"),
        ("  two:", "  one:", "'one' is there twice"),
        ("X: 2,", "X: 2, X: 4,", "'X' is there twice"),
        ("  two:", "  ONE:", "'one' and 'ONE' are one name"),
        ("  two:", "  ../two:", "'../two' cannot name a folder"),
        ("  two:", "  v1.2:", "'v1.2' cannot name a folder"),
        ("  two:", "  2:", "key 2 is no text"),
        ("seeds: [3, 1]", "seeds: []", r"seeds is \[\]"),
        ("seeds: [3, 1]", "seeds: 3", "seeds is 3"),
        ("seeds: [3, 1]", "seeds: [3, 3]", r"seeds is \[3, 3\]"),
        ("seeds: [3, 1]", "seeds: [-1]", r"seeds is \[-1\]"),
        ("seeds: [3, 1]", "seeds: [true]", r"seeds is \[True\]"),
        ("seeds: [3, 1]", "seeds: [4294967296]", "seeds is"),
        ("seeds: [3, 1]", "", "seeds is None"),
        ("seeds: [9]", "seeds: [x]", "forms.cpu: seeds is"),
        ("{X: 1, ", "{SEED: 1, ", "SEED is set for each run"),
        ("{Y: variant}", "{OUTPUT_DIR: x}", "two: options: OUTPUT_DIR is set"),
        ("{Y: variant}", "{SOLVER: {MAX_ITER: 3}}", "options: SOLVER is .*write keys in full"),
        ("{Y: variant}", "{Y: 2020-01-01}", "options: Y is .*expected a number"),
        ("{Y: variant}", "3", "two: options: is 3; expected keys"),
        ("  tiny: {}", "  tiny: !!python/object/apply:os.getcwd []", "could not determine"),
        ("options: {X: 1", "options: [{X: 1", "line"),
    ],
)
def test_a_faulty_file_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(ConfigError, match=rf"(?s)ablation\.yaml.*{message}"):
        read_ablation(write(folder, GOOD.replace(old, new)))


@pytest.mark.parametrize("text", ["", "- 1", "variants: {}\nseeds: [1]", "variants: [a]"])
def test_a_file_without_variants_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="ablation.yaml"):
        read_ablation(write(folder, text))


def test_a_file_nested_too_deep_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="ablation.yaml"):
        read_ablation(write(folder, "[" * 1500))


def test_unknown_forms_and_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no form 'gpu'; the file has cpu, tiny"):
        read_ablation(write(folder, GOOD), "gpu")
    with pytest.raises(ConfigError, match="none.yaml: no such file"):
        read_ablation(folder / "none.yaml")


def flat(node: dict, prefix: str = "") -> dict:
    pairs: dict = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        pairs |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return pairs


def configs(path: Path, form: str) -> dict[str, dict]:
    return {
        variant.name: load_config(variant.config, variant.options)
        for variant in read_ablation(path, form).variants
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_variant_loads_and_is_another(path: Path) -> None:
    full = [cfg.dump() for cfg in configs(path, "").values()]
    small = [cfg.dump() for cfg in configs(path, "cpu").values()]
    assert len(set(full + small)) == 2 * len(full) >= 4


@pytest.mark.parametrize("form", ["", "cpu"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_variant_evaluates_as_often_as_it_needs_to(path: Path, form: str) -> None:
    for cfg in configs(path, form).values():
        best_metric(epochs_to_iterations(cfg, 100))  # refuses early stopping without evaluations


def test_all_systems_differ_in_their_model_and_recipe_only_and_share_the_splits() -> None:
    path = CONFIGS / "ablations" / "systems.yaml"
    ablation = read_ablation(path, "cpu")
    assert ablation.reference == "best"
    assert [split.name for split in ablation.splits] == ["a", "b"] and len(ablation.seeds) == 2
    held_out = [set(yaml.safe_load(split.options[1])) for split in ablation.splits]
    assert [len(names) for names in held_out] == [5, 5] and not held_out[0] & held_out[1]
    # What a cell is, else they would not be measured on the same ground truth.
    cells = ("CELL.INSTANCES", "CELL.MIN_AREA", "CELL.CLASS_NAMES")
    shared = (
        *cells,
        "CROP.SIZE",
        "IMS_PER_BATCH",
        "AMP.DTYPE",
        "CONV_DIM",
        "BOX_HEAD.FC_DIM",
        "FPN.OUT_CHANNELS",
    )
    of_the_reports = ("BASE_LR", "TEST.DETECTIONS_PER_IMAGE", "ANCHOR_GENERATOR.SIZES")
    cfgs = configs(path, "cpu")
    dumps = {name: flat(yaml.safe_load(cfg.dump())) for name, cfg in cfgs.items()}
    assert list(dumps) == ["report1", "report2", "report3", "report4", "report5", "best"]
    for key, value in dumps["report1"].items():
        if key.endswith((*shared, *of_the_reports)):
            own = {"best"} if key.endswith(of_the_reports) else set()
            assert all(d[key] == value for name, d in dumps.items() if name not in own), key
    for cfg in cfgs.values():
        best_metric(cfg)
        assert cfg.MODEL.WEIGHTS == "" and 2000 < cfg.SOLVER.MAX_ITER < 3000


def test_all_systems_are_evaluated_as_the_best_config_predicts() -> None:
    path = CONFIGS / "ablations" / "systems.yaml"
    (evaluation,) = read_ablation(path, "cpu").evaluations
    asked = load_config(CONFIGS / "cellseg_best.yaml", [*evaluation.options])
    assert flat(yaml.safe_load(asked.dump())) == flat(
        yaml.safe_load(load_config(CONFIGS / "cellseg_best.yaml").dump())
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_in_the_small_form_only_the_factor_differs(path: Path) -> None:
    dumps = [flat(yaml.safe_load(c.dump())) for c in configs(path, "cpu").values()]
    differing = {key for dump in dumps for key in dump if dump[key] != dumps[0][key]}
    assert differing
    unexpected = {k for k in differing if not k.startswith(FACTORS[path.stem])}
    assert not unexpected


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_small_form_is_small_and_from_scratch(path: Path) -> None:
    assert len(read_ablation(path, "cpu").seeds) == 1
    assert len(read_ablation(path).seeds) > 1
    for cfg in configs(path, "cpu").values():
        assert cfg.MODEL.WEIGHTS == "" and cfg.SOLVER.MAX_EPOCHS == 0 == cfg.TEST.EVAL_PERIOD
        assert cfg.SOLVER.MAX_ITER <= 300 and cfg.SOLVER.IMS_PER_BATCH == 4
        assert cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.SIZE == [192, 192]
        assert count_parameters(cfg) < 40e6


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_small_form_takes_a_step(path: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, SyntheticParameters(train=1, test=0, size=(96, 96), cells=(9, 9)))
    (image,) = load_cell_dicts(tmp_path)
    for name, cfg in configs(path, "cpu").items():
        model = build_model(cfg)
        with EventStorage():
            total = sum(model([CellDatasetMapper(cfg, is_train=True)(image)]).values())
        total.backward()
        assert total.isfinite(), name
        idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not idle, name
