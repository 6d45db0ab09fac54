"""Detectron2's checkpointer, for files that need not be trusted and must fit the model."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from fvcore.common.checkpoint import _strip_prefix_if_present

from ..errors import CellDataError, ConfigError
from ..machine_faults import is_out_of_memory
from .files import read_checkpoint, replace_file
from .misfit import find_misfit
from .sources import check_weights

logger = logging.getLogger(__name__)


class CellCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that runs nothing it reads, checks it, and writes whole files.

    Upstream warns where a file does not fit the model and goes on with random numbers. Here

    - a whole model (``complete``, and always on resuming) must be in the file to the last
      parameter, and the file must hold nothing else of the network;
    - weights to start a training from may miss what is new (heads, an FPN, attention) and what is
      of another shape in the heads (another number of classes), but not a part of the backbone
      that is frozen, and no shape of the backbone may differ.

    Args:
        model: to load into or save.
        save_dir: folder of the checkpoints.
        complete: whether there must be a file, and it must hold the whole model.
        **checkpointables: what else a checkpoint holds; see upstream.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        complete: bool = False,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.complete = complete
        self._whole = complete
        self._source = ""
        self._wanted: set[str] = set()

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint, if that is asked for and there is one, else a file's weights.

        Args:
            path: ``MODEL.WEIGHTS``.
            resume: whether to look for a checkpoint.

        Raises:
            CellDataError: see ``load``; or where ``last_checkpoint`` names a file that is gone.
        """
        last = Path(self.get_checkpoint_file())
        if resume and self.has_checkpoint() and not last.is_file():
            raise CellDataError(
                Path(self.save_dir) / "last_checkpoint",
                f"the name of a file that is not there, {last.name!r}",
                "the checkpoint to resume from",
                "write the name of one that is there into it (model_<iteration>.pth)",
            )
        checkpoint: dict[str, Any] = super().resume_or_load(path, resume=resume)
        return checkpoint

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; see upstream's ``load``.

        Args:
            path: file or address; "" loads nothing, where that is allowed (not ``complete``).
            checkpointables: names of what to load beside the model; None, which is to resume, loads
                all, and then the file must hold the whole model and all of them.

        Raises:
            CellDataError: for a file that is not given, is missing, cannot be read, asks for code
                to be run, or does not fit the model.
            ConfigError: of a checkpointable whose state fits another config.
        """
        if self.complete and not path:
            raise CellDataError(
                "MODEL.WEIGHTS",
                "nothing",
                "a trained model's weights",
                "add MODEL.WEIGHTS path/to/model_final.pth to the command",
            )
        resuming = checkpointables is None
        check_weights(path, trained=self.complete)
        self._source = path
        self._whole = self.complete or resuming
        self._wanted = set(self.checkpointables) if resuming else set()
        try:
            checkpoint: dict[str, Any] = super().load(path, checkpointables=checkpointables)
        except OSError as error:
            raise CellDataError(
                path,
                f"a file that cannot be read ({error})",
                "a checkpoint",
                "check the path, and for an address the network",
            ) from error
        except (CellDataError, ConfigError):
            raise
        # What optimizers, schedulers and models make of a state that is none of theirs.
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise CellDataError(
                path,
                f"a state that cannot be loaded ({type(error).__name__}: {error!s:.200})",
                "a checkpoint of this model, optimizer and schedule",
                "get the file again, or resume from another checkpoint",
            ) from error
        return checkpoint

    def save(self, name: str, **kwargs: Any) -> None:
        """Write the model and the checkpointables to ``save_dir/name.pth``, to be resumed from.

        The file is whole before ``last_checkpoint`` names it; on ranks other than the main one
        nothing is written.

        Args:
            name: of the file, without a suffix.
            **kwargs: more to save.

        Raises:
            OSError: where the disk takes no more; what was there before is there still.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        self._write(f"{name}.pth", {"model": self.model.state_dict(), **states, **kwargs})
        self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, weights: Mapping[str, torch.Tensor], **kwargs: Any) -> None:
        """Write weights to ``save_dir/name.pth``, for predictions; ``last_checkpoint`` stays.

        Args:
            name: of the file, without a suffix.
            weights: by parameter and buffer.
            **kwargs: more to save.

        Raises:
            OSError: see ``save``.
        """
        if self.save_dir and self.save_to_disk:
            self._write(f"{name}.pth", {"model": weights, **kwargs})

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        path = Path(self.save_dir) / name
        logger.info("Saving checkpoint to %s", path)
        try:
            with replace_file(path) as file:
                torch.save(data, file)
        except (OSError, RuntimeError) as error:
            # torch.save closes its archive on the way out, and what that raises hides the cause.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            last = Path(self.get_checkpoint_file()).name
            raise OSError(
                f"{path}: the disk does not take the file, of about {_mebibytes(data)} MiB "
                f"({cause}); make room, or keep fewer checkpoints (SOLVER.KEEP_CHECKPOINTS), and "
                f"go on with --resume from {last or 'the start: there is no checkpoint yet'}"
            ) from cause

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which checkpoint to resume from."""
        with replace_file(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if missing := sorted(self._wanted - checkpoint.keys()):
            raise CellDataError(
                self._source,
                f"weights without what a resumed run needs ({', '.join(missing)})",
                "a checkpoint",
                "resume from a model_<iteration>.pth, or name the file in MODEL.WEIGHTS to start "
                "a new training from it, in a folder of its own",
            )
        from_caffe2 = checkpoint.get("__author__") == "Caffe2"
        weights = self._rename(checkpoint, from_caffe2)
        misfit = find_misfit(self.model, weights, absorbed_statistics=from_caffe2)
        faults = misfit.faults_of_whole() if self._whole else misfit.faults_of_start()
        if faults:
            raise CellDataError(
                self._source,
                "weights of another model: " + "; ".join(faults),
                "the weights of the model that the config describes",
                "use the config that belongs to the weights (config.yaml beside a checkpoint), or "
                "the weights that belong to the config",
            )
        checkpoint["model"] = weights
        return super()._load_model(checkpoint)

    def _rename(self, checkpoint: dict[str, Any], from_caffe2: bool) -> dict[str, torch.Tensor]:
        """Return the tensors of a checkpoint under the model's names, as far as they have one."""
        weights = OrderedDict(checkpoint["model"])
        try:
            self._convert_ndarray_to_tensor(weights)
            metadata = getattr(checkpoint["model"], "_metadata", None)
            if isinstance(metadata, dict):
                # Some layers convert what older versions of them saved; their version is here.
                vars(weights)["_metadata"] = metadata
            _strip_prefix_if_present(weights, "module.")
            if checkpoint.pop("matching_heuristics", False):
                own = self.model.state_dict()
                return align_and_update_state_dicts(own, weights, c2_conversion=from_caffe2)
        except (AssertionError, TypeError, ValueError) as error:
            raise CellDataError(
                self._source,
                f"weights whose names or types cannot be matched ({error})",
                "the weights of the model that the config describes",
                "use the weights that belong to the config",
            ) from error
        return weights


def _mebibytes(data: Any) -> int:
    """Return about how much room tensors in nested dicts and lists take, in MiB."""

    def size(item: Any) -> int:
        if isinstance(item, torch.Tensor):
            return item.numel() * item.element_size()
        if isinstance(item, Mapping):
            item = item.values()
        elif not isinstance(item, list | tuple):
            return 0
        return sum(map(size, item))

    return 1 + (size(data) >> 20)
