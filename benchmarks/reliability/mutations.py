"""Mutation check: each fsync, hash check, lock and guard is taken out in turn; a test must fail for each.

``python -m benchmarks.reliability.mutations [--out FILE]`` works on a copy of the package and the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning.pytorch  # noqa: F401  (here for the forked processes, which save its import)
import pytest

from tests.reliability.forking import fork, wait

_PACKAGE = "lightning_ckptkd"
_SECONDS = 600  # for the tests of one room
_STORE, _LOCAL, _LOCK = "snapshots/store.py", "snapshots/folders/local.py", "snapshots/folders/lock.py"
_OBJECTS, _REMOTE_LOCK = "snapshots/folders/objects.py", "snapshots/folders/remote_lock.py"
_TESTS = {
    "store": "tests/snapshots/test_store.py",
    "folders": "tests/snapshots/test_folders.py",
    "objects": "tests/snapshots/test_object_stores.py",
    "copy": "tests/snapshots/test_host_copy.py",
    "recorder": "tests/snapshots/test_recorder.py",
    "weights": "tests/snapshots/test_weights.py",
    "pickle": "tests/snapshots/test_inert_pickle.py",
    "archive": "tests/snapshots/test_torch_archive.py",
    "checkpoint": "tests/snapshots/test_checkpoint_file.py",
    "metrics": "tests/snapshots/test_metrics_file.py",
    "takeover": "tests/snapshots/test_takeover.py",
    "harvester": "tests/test_harvester.py",
    "selector": "tests/test_selector.py",
    "ensemble": "tests/teachers/test_ensemble.py",
    "untrusted": "tests/reliability/test_untrusted.py",
    "power loss": "tests/reliability/test_faults.py::test_power_loss",
    "errors": "tests/reliability/test_faults.py::test_every_call_fails",
    "kills": "tests/reliability/test_faults.py::test_killed_at_every_call",
    "ranks": "tests/reliability/test_faults.py::test_one_of_two_ranks_fails",
    "interruptions": "tests/reliability/test_faults.py::test_interrupted_and_resumed",
    "selection": "tests/snapshots/test_selection.py",
    "seal": "tests/snapshots/test_seal.py",
    "cadence": "tests/snapshots/test_cadence.py",
    "retention": "tests/snapshots/test_retention.py",
    "clock": "tests/snapshots/test_clock.py",
    "gaussian": "tests/information/test_gaussian.py",
    "information metrics": "tests/information/test_metrics.py",
    "label": "tests/information/test_label.py",
    "cmi": "tests/information/test_cmi.py",
    "convolutional": "tests/information/test_convolutional.py",
    "likelihoods": "tests/information/test_likelihoods.py",
    "uncertainty": "tests/information/test_uncertainty.py",
    "by sample": "tests/information/test_by_sample.py",
    "ranking": "tests/information/test_ranking.py",
    "joint": "tests/information/test_joint.py",
    "inputs": "tests/selecting/rules/test_input_vectors.py",
    "kd": "tests/losses/test_kd.py",
    "dkd": "tests/losses/test_dkd.py",
    "dist": "tests/losses/test_dist.py",
    "mse": "tests/losses/test_mse.py",
    "feature": "tests/losses/test_feature.py",
    "losses": "tests/losses/test_base.py",
    "combine": "tests/losses/test_combine.py",
    "hard": "tests/losses/test_hard.py",
    "folding": "tests/teachers/test_folding.py",
    "averaging": "tests/snapshots/test_averaging.py",
    "batch norm": "tests/selecting/test_batch_norm.py",
    "soup": "tests/selecting/test_soup.py",
    "race": "tests/selecting/test_race.py",
    "default ensemble": "tests/selecting/test_default_ensemble.py",
    "worth": "tests/selecting/test_worth.py",
    "scales": "tests/teachers/test_scales.py",
    "scale": "tests/losses/test_scale.py",
    "robust": "tests/information/test_robust.py",
    "temperature": "tests/information/test_temperature.py",
    "calibration": "tests/teachers/test_calibration.py",
    "remembered": "tests/teachers/test_remembered.py",
    "views": "tests/teachers/test_views.py",
    "cache": "tests/teachers/test_cache.py",
    "filling": "tests/teachers/test_filling.py",
    "apart": "tests/teachers/test_apart.py",
    "trial": "tests/teachers/test_trial.py",
    "mixing": "tests/teachers/test_mixing.py",
    "schedules": "tests/teachers/test_schedules.py",
    "choice": "tests/teachers/test_choice.py",
    "causal lm": "tests/tasks/test_causal_lm.py",
    "binary": "tests/tasks/test_binary.py",
    "multilabel": "tests/tasks/test_multilabel.py",
    "multiclass": "tests/tasks/test_multiclass.py",
    "soft": "tests/tasks/test_soft.py",
    "regression": "tests/tasks/test_regression.py",
    "dense": "tests/tasks/test_dense.py",
    "transfer": "tests/tasks/test_transfer.py",
    "loaders": "tests/tasks/test_loaders.py",
    "infer": "tests/tasks/test_infer.py",
    "calling": "tests/tasks/test_calling.py",
    "probe": "tests/selecting/test_probe.py",
    "pooling": "tests/selecting/test_pooling.py",
    "rows": "tests/selecting/test_rows.py",
    "score files": "tests/selecting/test_score_files.py",
    "proxy": "tests/selecting/test_student_proxy.py",
    "held out": "tests/selecting/rules/test_held_out.py",
    "length": "tests/trainer/test_length.py",
    "distillation": "tests/test_distillation.py",
    "tasks of students": "tests/test_distillation_tasks.py",
}


@dataclass(frozen=True)
class Mutation:
    """One guard, what takes it out, and the tests that should notice."""

    guard: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = [
    Mutation("fsync of a file", _LOCAL, "                    os.fsync(descriptor)\n", "", ("power loss",)),
    Mutation("fsync of the folder", _LOCAL, "            _sync(self.path)\n", "", ("power loss",)),
    Mutation("fsync of a new folder's parent", _LOCAL, "                _sync(path.parent)\n", "", ("folders",)),
    Mutation("new file for each write", _LOCAL, "os.O_CREAT | os.O_EXCL", "os.O_CREAT", ("power loss",)),
    Mutation("temporary file goes on failure", _LOCAL, "                    os.unlink(temporary)\n", "                    pass\n", ("store", "errors")),
    Mutation("no link is followed", _LOCAL, "os.O_RDONLY | os.O_NOFOLLOW", "os.O_RDONLY", ("store", "untrusted")),
    Mutation("regular files only", _LOCAL, "if not stat.S_ISREG(status.st_mode):", "if False:", ("store", "untrusted")),
    Mutation("memory error on reading", _LOCAL, "except (OSError, MemoryError) as error:", "except OSError as error:", ("untrusted",)),
    Mutation("plain names on reading", "snapshots/folders/base.py", "if not is_plain_name(name):", "if False:", ("folders",)),
    Mutation("plain names in the manifest", "snapshots/manifest.py", "if not is_plain_name(snapshot.file) or not", "if not", ("store",)),
    Mutation("size on reading", "snapshots/folders/base.py", "if size is not None and found != size:", "if False:", ("store",)),
    Mutation("limit of JSON files", "snapshots/folders/base.py", "limit=_MAX_JSON_BYTES", "limit=None", ("folders",)),
    Mutation("limit of JSON files that are written", "snapshots/folders/base.py", "if len(data) > _MAX_JSON_BYTES:", "if False:", ("metrics",)),
    Mutation("hash of metrics", "snapshots/metrics_file.py", "if hashlib.sha256(data).hexdigest() != self.sha256:", "if False:", ("metrics",)),
    Mutation("plain names of metrics' files", "snapshots/manifest.py", "if not is_plain_name(filed.file) or not", "if not", ("metrics",)),
    Mutation("large metrics have a file", "snapshots/metrics_file.py", "if size > _MAX_INLINE_BYTES or", "if", ("metrics",)),
    Mutation("metrics beyond a sum have a file", "snapshots/metrics_file.py", "or total + size > _MAX_INLINE_TOTAL:", "or False:", ("metrics",)),
    Mutation("hash on loading", _STORE, "if hashlib.sha256(data).hexdigest() != snapshot.sha256:", "if False:", ("store", "untrusted")),
    Mutation("hash of a snapshot made up for", _STORE, "if sha256 not in (None, found):", "if False:", ("harvester",)),
    Mutation("writers only write", _STORE, "if self._held is None:", "if False:", ("store",)),
    Mutation("another run's manifest", _STORE, "if manifest.run_id != run_id:", "if False:", ("store", "folders")),
    Mutation("leftovers are cleaned", _STORE, "            folder.clean(manifest.tag, store._is_leftover)\n", "", ("folders", "kills")),
    Mutation("only the run's own leftovers", _STORE, "and match[1] == self.manifest.tag", "and True", ("folders",)),
    Mutation("only the run's own temporary files", _LOCAL, "temporary[1] == tag", "True", ("folders",)),
    Mutation("state is looked up after a failure", _STORE, "self.manifest = _read_own_manifest(self.folder, self.manifest.run_id) or self.manifest", "pass", ("errors", "store")),
    Mutation("lock between processes", _LOCK, "fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", ("folders",)),
    Mutation("lock within a process", _LOCK, "if key in _held_here:", "if False:", ("folders",)),
    Mutation("lock is given back", _LOCK, "            _held_here.discard(key)\n", "            pass\n", ("folders",)),
    Mutation("remote upload is whole", "snapshots/folders/remote.py", "if found != needed:", "if False:", ("folders",)),
    Mutation("remote lock", _REMOTE_LOCK, "if owner.run_id != own.run_id:", "if False:", ("objects",)),
    Mutation("remote lock is put conditionally", _OBJECTS, 'data, mode="create", volume', "data, volume", ("objects",)),
    Mutation("remote lock of another stays", _REMOTE_LOCK, "if self._is(own):", "if True:", ("objects",)),
    Mutation("remote lock before an upload", _STORE, "        self.folder.check_lock()\n        if not", "        if not", ("objects",)),
    Mutation("remote lock and run before a manifest", _STORE, "        self._check_own()\n        before", "        before", ("objects",)),
    Mutation("only the run's own manifest is adopted", _STORE, "_read_own_manifest(self.folder, self.manifest.run_id) or self.manifest", "Manifest.read(self.folder)", ("objects",)),
    Mutation("a store without conditional puts is said", "snapshots/folders/remote.py", "if not self._objects.conditional:", "if False:", ("objects",)),
    Mutation("buckets are not made", _OBJECTS, 'self._call("info", self.bucket)', "pass", ("objects",)),
    Mutation("cached listings of info", _OBJECTS, "        self._files.invalidate_cache(self.root)\n        return int", "        return int", ("objects",)),
    Mutation("cached listings of folders", _OBJECTS, "        self._files.invalidate_cache(self.root)\n        return [", "        return [", ("objects",)),
    Mutation("patience after a failure", _OBJECTS, "            self._patient = False\n", "", ("objects",)),
    Mutation("one bound for a snapshot", "snapshots/recorder.py", "with self.store.folder.bounded():", "if True:", ("objects",)),
    Mutation("fp16 overflow", "snapshots/host_copy.py", "        if overflown:\n", "        if False:\n", ("copy",)),
    Mutation("no torch beside training", "snapshots/host_copy.py", "self._memory.numpy().fill(0)", "self._memory.zero_()", ("copy",)),
    Mutation("what can't be stored", "snapshots/layout.py", "        _check_storable(name, value)\n", "        pass\n", ("copy",)),
    Mutation("names that collide", "snapshots/weights.py", "        if name in weights:", "        if False:", ("weights",)),
    Mutation("two copies at most", "snapshots/recorder.py", "_COPIES = 2", "_COPIES = 99", ("recorder",)),
    Mutation("errors of the thread are kept", "snapshots/recorder.py", "except Exception as error:  # it", "except ZeroDivisionError as error:  # it", ("recorder",)),
    Mutation("a checkpoint waits for other weights", "harvester.py", "        recorder.flush()\n        return None\n", "        return None\n", ("harvester",)),
    Mutation("a checkpoint compares the weights", "harvester.py", "if whole and copy.matches(module_weights(module, self.submodule)):", "if whole:", ("harvester",)),
    Mutation("a checkpoint waits for earlier snapshots", "harvester.py", "                    recorder.flush_before(step)\n", "", ("harvester",)),
    Mutation("the last snapshot of a complete run", "harvester.py", 'if self._restored.get("unstored"):', "if False:", ("harvester", "interruptions")),
    Mutation("a killed snapshot is made up for", "harvester.py", "            self._take(pl_module, unstored)", "            pass", ("interruptions",)),
    Mutation("training waits for the last snapshot", "harvester.py", "            recorder.close()  # whatever", "            pass  # whatever", ("harvester",)),
    Mutation("metrics before a checkpoint", "harvester.py", "        self._record_metrics(trainer)\n        self._waiting = waiting", "        self._waiting = waiting", ("harvester", "interruptions")),
    Mutation("a snapshot gets its metrics on resume", "harvester.py", '        self._recorder.set_metrics(entry["global_step"], entry["metrics"])\n', "", ("harvester",)),
    Mutation("damage is repaired", _STORE, "if snapshot != old or not self._is_intact(snapshot):", "if snapshot != old:", ("store",)),
    Mutation("a left branch pushes nothing out", _STORE, ".kept([*before, snapshot]), *beyond])", ".kept([*before, snapshot, *beyond])])", ("store",)),
    Mutation("a failed snapshot does not move the position", "snapshots/recorder.py", "                self._position = global_step\n            finally:\n", "            finally:\n                self._position = global_step\n", ("recorder",)),
    Mutation("a rank's error reaches all", "trainer/ranks.py", "        if message is not None:", "        if False:", ("ranks",)),
    Mutation("missing ranks are named", "trainer/ranks.py", 'return f"{_name(missing)} died or hangs"', 'return "a rank died or hangs"', ("ranks",)),
    Mutation("what a pickle names is not called", "snapshots/inert_pickle.py", "else Call(function, given))", "else __import__(\"pydoc\").locate(function.path)(*given))", ("checkpoint", "untrusted")),
    Mutation("what a pickle names is not imported", "snapshots/inert_pickle.py", "        self._push(Global(f\"{module}.{self._line()}\"))", "        __import__(module)\n        self._push(Global(f\"{module}.{self._line()}\"))", ("pickle", "checkpoint", "untrusted")),
    Mutation("only known opcodes", "snapshots/inert_pickle.py", "            if action is None:\n                raise", "            if action is None:\n                continue\n                raise", ("pickle",)),
    Mutation("a pickle's length", "snapshots/inert_pickle.py", "        if count > self._left:\n", "        if False:\n", ("pickle",)),
    Mutation("a pickle's opcodes are counted", "snapshots/inert_pickle.py", "for _ in range(_MAX_OPCODES):", "while True:", ("pickle",)),
    Mutation("a tensor within its storage", "snapshots/tensor_plan.py", "(plan.numel and (last + 1) * dtype.itemsize > held)", "False", ("archive",)),
    Mutation("a storage as long as it says", "snapshots/torch_archive.py", "if storage.numel() < plan.held:", "if False:", ("archive",)),
    Mutation("a storage's checksum", "snapshots/torch_archive.py", "if member.CRC and zlib", "if False and zlib", ("archive",)),
    Mutation("memory of an archive", "snapshots/torch_archive.py", "        if self._left < 0:", "        if False:", ("archive",)),
    Mutation("shards of one rank", "snapshots/checkpoint_file.py", "if kind.startswith(_SHARDS):", "if False:", ("checkpoint",)),
    Mutation("two runs contradict", "snapshots/runs.py", "        if reason is not None:\n            return one, other, reason", "        if False:\n            return one, other, reason", ("takeover",)),
    Mutation("two runs have other settings", "snapshots/runs.py", "if other.signs.get(title) != value:", "if False:", ("takeover",)),
    Mutation("a folder that became another run's", "snapshots/takeover.py", "        if other is not None:\n", "        if False:\n", ("takeover",)),
    Mutation("batches where no steps are counted", "harvester.py", "            self._clock.count_batches(batches)\n", "            pass\n", ("harvester",)),
    Mutation("a snapshot that is left out is told", "harvester.py", "            self._say_skipped(trainer)\n", "", ("harvester",)),
    Mutation("links among checkpoints", "snapshots/takeover.py", " and not path.is_symlink()", "", ("checkpoint",)),
    Mutation("weights as large as their file", "snapshots/checkpoint_file.py", "        self.check_size(plan_layout(weights).data_bytes)\n", "", ("checkpoint",)),
    Mutation("errors of unpickled objects", "snapshots/checkpoint_file.py", "        except Exception as error:  # what is in", "        except ZeroDivisionError as error:  # what is in", ("checkpoint", "untrusted")),
    Mutation("bounded hyper-parameters", "snapshots/fields.py", "    if depth < 0 or room[0] < 0:", "    if False:", ("untrusted",)),
    Mutation("NaN is not scored", "selecting/snapshot_scorer.py", "item.candidate(excluded_by(weights))", "item.candidate(None)", ("selector",)),
    Mutation("NaN is not ranked", "selecting/features.py", "if not features.finite:", "if False:", ("selector",)),
    Mutation("NaN does not teach", "teachers/ensemble.py", "if name is not None:", "if False:", ("ensemble",)),
    Mutation("damage since the snapshot was scored", "selecting/scoring.py", "            item.verify()", "            pass", ("selector",)),
    Mutation("scores of other samples", "selecting/score_files.py", "[measured, probe.digest(), repr(module)", "[measured, repr(module)", ("selector",)),
    Mutation("scores of other networks", "selecting/score_files.py", "probe.digest(), repr(module)", "probe.digest()", ("selector",)),
    Mutation("scores are sealed", "selecting/score_files.py", "            if is_sealed(item):", "            if True:", ("score files",)),
    Mutation("scores are of the snapshot as it is", "selecting/score_files.py", "if score is not None and _is_of(score, snapshot)", "if score is not None", ("score files",)),
    Mutation("selections are sealed", "snapshots/selection.py", "        if not is_sealed(document):", "        if False:", ("selection",)),
    Mutation("a snapshot is chosen once", "snapshots/selection.py", "if len(candidates) < len(selection.candidates) or len(set(selection.chosen)) < len(selection.chosen):", "if False:", ("selection",)),
    Mutation("chosen snapshots are those of the manifest", "snapshots/selection.py", "            if not is_soup and candidates.get(name) not in known:", "            if False:", ("selection",)),
    Mutation("a seal is over all values", "snapshots/seal.py", "json.dumps(content, sort_keys=True)", "json.dumps(sorted(content))", ("seal",)),
    Mutation("epochs: off by one in the cadence", "snapshots/cadence.py", "(epoch + 1) % (self.every_n_epochs or 1) == 0", "epoch % (self.every_n_epochs or 1) == 0", ("cadence",)),
    Mutation("steps: off by one in the cadence", "snapshots/cadence.py", "step // n > previous // n", "(step + 1) // n > (previous + 1) // n", ("cadence",)),
    Mutation("steps that a batch jumps over", "snapshots/cadence.py", "step // n > previous // n", "step % n == 0", ("cadence",)),
    Mutation("start of the window", "snapshots/cadence.py", "start < progress <= end", "start <= progress <= end", ("cadence",)),
    Mutation("end of the window", "snapshots/cadence.py", "start < progress <= end", "start < progress < end", ("cadence",)),
    Mutation("snapshots to come", "snapshots/cadence.py", "range(n, length + 1, n)", "range(n, length, n)", ("cadence",)),
    Mutation("the newest are kept", "snapshots/retention.py", "return kept[-self.last :]", "return kept[: self.last]", ("retention",)),
    Mutation("a budget's nearest neighbours go", "snapshots/retention.py", "return min(range(1, last - 1)", "return max(range(1, last - 1)", ("retention",)),
    Mutation("a budget keeps the newest", "snapshots/retention.py", "        return last - 1\n    return min", "        return last\n    return min", ("retention",)),
    Mutation("batches that are counted", "snapshots/clock.py", "self.position + max(batches - self.batches, 0)", "self.position + batches", ("clock",)),
    Mutation("a clock that Lightning moves", "snapshots/clock.py", "if global_step <= self.global_step:", "if global_step < self.global_step:", ("clock",)),
    Mutation("weights that are watched", "snapshots/clock.py", "or not all(map(torch.equal, found, self._elements))", "", ("clock",)),
    Mutation("the scored fold in the Gaussian's covariance", "information/gaussian.py", "add_noise((sum_left - own_left) / (total.count - fold.count), floor)", "add_noise(sum_left / total.count, floor)", ("gaussian",)),
    Mutation("the scored fold in X's covariance", "information/gaussian.py", "add_noise((sum_alone - own_alone) / (total.count - fold.count), floor)", "add_noise(sum_alone / total.count, floor)", ("gaussian",)),
    Mutation("the scored fold in the Gaussian's slope", "information/gaussian.py", "(total.xf - fold.xf) / self._count - torch", "total.xf / total.count - torch", ("gaussian",)),
    Mutation("sign of the Gaussian's gain", "information/gaussian.py", "return _costs(x, alone, floor) - _costs(residual, given_f, floor)", "return _costs(residual, given_f, floor) - _costs(x, alone, floor)", ("gaussian",)),
    Mutation("half of a log-determinant", "information/gaussian.py", "(add_noise(covariance, floor) / floor).logabsdet / 2)", "(add_noise(covariance, floor) / floor).logabsdet)", ("gaussian",)),
    Mutation("features are centred first", "information/gaussian.py", "(part - part.mean(0) for part in (pull_in(x), winsorise(f)))", "(part for part in (pull_in(x), winsorise(f)))", ("gaussian",)),
    Mutation("the ridge is chosen", "information/gaussian.py", "if best is not None and volume >= best[0]:", "if best is not None:", ("gaussian",)),
    Mutation("constant features", "information/gaussian.py", "constant = (deviation <= 1e-9 * deviation.max()) | (deviation <= _STILL * usual)", "constant = deviation < 0", ("gaussian",)),
    Mutation("what lies between two streams", "information/metrics.py", "products + product + between * (counts * share)[:, :, None]", "products + product", ("information metrics",)),
    Mutation("means of two streams", "information/metrics.py", "means + distance * share", "means + distance / 2", ("information metrics",)),
    Mutation("sign of the label term", "information/label.py", "return label_surprises(labels) - best", "return label_surprises(labels) + best", ("label",)),
    Mutation("temperatures of the scored fold", "information/label.py", "        others = costs[~held_out]\n", "        others = costs\n", ("label",)),
    Mutation("log of the error's variance", "information/label.py", "gains[held_out] -= (mse.log() + errors[held_out] / mse) / 2", "gains[held_out] -= (errors[held_out] / mse) / 2", ("label",)),
    Mutation("the scored fold in the error's variance", "information/label.py", "others = errors[~held_out] if bool((~held_out).any()) else errors", "others = errors", ("label",)),
    Mutation("logits are divided by T", "information/label.py", "(wide / temperatures[chain[0]]).exp_()", "(wide * temperatures[chain[0]]).exp_()", ("label",)),
    Mutation("means of each class", "information/cmi.py", "probabilities / means[labels]", "probabilities / probabilities.mean(0)", ("cmi",)),
    Mutation("a KL's first argument", "information/cmi.py", "torch.special.xlogy(probabilities, probabilities", "torch.special.xlogy(means[labels], probabilities", ("cmi",)),
    Mutation("the scored fold trains no decoder", "information/convolutional.py", "(folds < last - 1, folds == last - 1, folds == last)", "(folds < last + 1, folds == last - 1, folds == last)", ("convolutional",)),
    Mutation("decoders are scored in eval mode", "information/convolutional.py", "    network.eval()\n", "", ("convolutional",)),
    Mutation("the best decoder is kept", "information/convolutional.py", "    network.load_state_dict(kept)\n", "", ("convolutional",)),
    Mutation("the constant of a density", "information/likelihoods.py", "_log_normaliser(outputs) - outputs * images", "-outputs * images", ("likelihoods",)),
    Mutation("log-variance of an image", "information/likelihoods.py", "log_variance.exp() + log_variance + math.log(math.tau)", "log_variance.exp() + math.log(math.tau)", ("likelihoods",)),
    Mutation("the jackknife's factor", "information/uncertainty.py", "((count - 1) / count * (replicates", "(1 / count * (replicates", ("uncertainty",)),
    Mutation("the jackknife leaves a group out", "information/uncertainty.py", "(sums.sum() - sums) / (len(values) - torch.bincount(groups))", "sums / torch.bincount(groups)", ("uncertainty",)),
    Mutation("errors by sample", "information/by_sample.py", "mean + (totals - mean * counts) / counts.mean()", "mean + (totals - mean) / counts.mean()", ("by sample",)),
    Mutation("a term is the sum over units", "information/by_sample.py", "return means.sum() + gains", "return means.mean() + gains", ("by sample", "label")),
    Mutation("the floor of I(Y;F)", "information/ranking.py", "label_information >= self.label_floor", "label_information <= self.label_floor", ("ranking",)),
    Mutation("negative terms count as none", "information/ranking.py", "    values = values.clamp_min(0)\n    if how", "    if how", ("ranking",)),
    Mutation("of equal scores the latest", "information/ranking.py", "(max if ties == \"later\" else min)(equal", "(min if ties == \"later\" else max)(equal", ("ranking",)),
    Mutation("spaced ones are no neighbours", "information/ranking.py", "gap = float(steps.max()) / (2 * count)", "gap = 0.0", ("ranking",)),
    Mutation("half of training", "information/ranking.py", "(steps - float(steps[-1]) / 2).abs()", "(steps - float(steps[-1])).abs()", ("ranking",)),
    Mutation("a set's ridge and folds", "information/joint.py", "(total - part) / size for part", "total / size for part", ("joint",)),
    Mutation("a set grows by its error", "information/joint.py", "if steps and count is None and gain <= error:", "if steps and count is None and gain <= 0:", ("joint",)),
    Mutation("what the set explained already", "information/joint.py", "product = product - mine[fold].T @ other[fold]", "product = product + mine[fold].T @ other[fold]", ("joint",)),
    Mutation("bias of the logistic probe", "information/logistic.py", "return features @ weights[:-1] + weights[-1]", "return features @ weights[:-1]", ("label",)),
    Mutation("the scored fold of the logistic probe", "information/logistic.py", "_fit(features[~held_out], labels[~held_out], torch", "_fit(features, labels, torch", ("label",)),
    Mutation("shares of a sample's tokens", "information/inputs.py", "return bags / bags.sum(1, keepdim=True).clamp_min(1)", "return bags", ("inputs",)),
    Mutation("components without variance", "information/inputs.py", "min(num_components, kept)", "num_components", ("gaussian", "inputs")),
    Mutation("T² of the distillation loss", "losses/kd.py", "    return divergence * temperature**2\n", "    return divergence\n", ("kd",)),
    Mutation("direction of the KL", "losses/kd.py", "F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1), reduction", "F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1), reduction", ("kd",)),
    Mutation("the loss of high T", "losses/kd.py", "    if temperature > CANCELS_ABOVE:", "    if False:", ("kd",)),
    Mutation("T² of planes", "losses/kd.py", "return (divergence * valid).sum() / valid.sum().clamp_min(1) * temperature**2", "return (divergence * valid).sum() / valid.sum().clamp_min(1)", ("dense",)),
    Mutation("pixels that do not count", "losses/kd.py", "(divergence * valid).sum() / valid.sum()", "divergence.sum() / valid.sum()", ("dense",)),
    Mutation("T² of DKD", "losses/dkd.py", "(alpha * tckd + beta * nckd).mean() * temperature**2", "(alpha * tckd + beta * nckd).mean()", ("dkd",)),
    Mutation("weights of DKD", "losses/dkd.py", "alpha * tckd + beta * nckd", "beta * tckd + alpha * nckd", ("dkd",)),
    Mutation("the other classes", "losses/dkd.py", "others + (others >= target).long()", "others + (others > target).long()", ("dkd",)),
    Mutation("T² of DIST", "losses/dist.py", "_distance(q.T, p.T)) * temperature**2", "_distance(q.T, p.T))", ("dist",)),
    Mutation("DIST between samples", "losses/dist.py", "gamma * _distance(q.T, p.T)", "gamma * _distance(q, p)", ("dist",)),
    Mutation("mean of probabilities", "losses/combine.py", "torch.logsumexp(F.log_softmax(logits / temperature, dim=2) + shares.log(), dim=0)", "(F.log_softmax(logits / temperature, dim=2) * shares).sum(0)", ("combine",)),
    Mutation("mean of logits", "losses/combine.py", "        return (shares * logits).sum(0)\n", "        return logits[0]\n", ("combine",)),
    Mutation("teachers' weights are shares", "losses/combine.py", "return (weights / weights.sum()).to(", "return weights.to(", ("combine",)),
    Mutation("per teacher", "losses/base.py", "return (losses * shares).sum()", "return losses.sum()", ("losses",)),
    Mutation("ignored samples in the hard loss", "losses/hard.py", "        return total / counted.sum().clamp_min(1)\n    share", "        return total / len(targets)\n    share", ("hard",)),
    Mutation("class weights in the hard loss's mean", "losses/hard.py", "return total / share.clamp_min", "return total / counted.sum().clamp_min", ("hard",)),
    Mutation("maps that shrink", "losses/feature.py", "maps = F.adaptive_avg_pool2d(maps, pooled)", "maps = maps[..., : pooled[0], : pooled[1]]", ("feature",)),
    Mutation("the mean over classes of MSE", "losses/mse.py", "return F.mse_loss(*logit_pair", "return F.mse_loss(reduction=\"sum\", *logit_pair", ("mse",)),
    Mutation("teachers in eval mode", "teachers/ensemble.py", "member.eval().requires_grad_(False)", "member.train().requires_grad_(False)", ("ensemble",)),
    Mutation("teachers are frozen", "teachers/ensemble.py", "member.eval().requires_grad_(False)", "member.eval()", ("ensemble",)),
    Mutation("epsilon of a folded BatchNorm", "teachers/folding.py", "fuse(*doubles, norm.eps, *affine)", "fuse(*doubles, 0.1, *affine)", ("folding",)),
    Mutation("layers that run once are folded", "teachers/folding.py", "runs[name] == 1 and shared[id(named[name])] == 1", "True", ("folding",)),
    Mutation("outputs that others see are not folded", "teachers/folding.py", "if len(names) == 1\n", "if names\n", ("folding",)),
    Mutation("paths with other logits", "teachers/way_trial.py", "if is_close(logits, self.reference, ROUGH if self._rough else tolerance):", "if True:", ("calibration", "remembered")),
    Mutation("nothing is timed where torch is deterministic", "teachers/calibration.py", "timed = not torch.are_deterministic_algorithms_enabled()", "timed = True", ("calibration",)),
    Mutation("a known path is taken", "teachers/calibration.py", "if wanted is not None and trial.follow(wanted):", "if False:", ("calibration",)),
    Mutation("a remembered way with other logits", "teachers/way_trial.py", "if is_close(logits, self.reference, ROUGH if rough else EXACT):", "if True:", ("remembered",)),
    Mutation("ways that nobody knows", "teachers/remembered.py", "isinstance(name, str) and name in _NAMES", "isinstance(name, str)", ("remembered",)),
    Mutation("the key has the shape", "teachers/remembered.py", "list(tensor.shape), ", "", ("remembered",)),
    Mutation("a wrong view", "teachers/views.py", "index, view = divmod(item, self.views)", "index, view = divmod(item, self.views)[0], 0", ("views",)),
    Mutation("views are seeded by their sample", "teachers/views.py", "seed_by(seed, index, view)", "seed_by(seed, view)", ("views",)),
    Mutation("another view in another epoch", "teachers/views.py", 'mix("view", self.seed, self.epoch, index)', 'mix("view", self.seed, index)', ("views",)),
    Mutation("generators are put back", "teachers/views.py", "        with keep_random_state():\n            if self._draws is None", "        if True:\n            if self._draws is None", ("views",)),
    Mutation("collate functions draw nothing", "teachers/views.py", "if random_state() != before:", "if False:", ("views",)),
    Mutation("hash of a chunk", "teachers/chunk_rows.py", "            if found.hexdigest() != sha256:", "            if False:", ("cache",)),
    Mutation("a row that changed later", "teachers/chunk_rows.py", "            if found != self._checksums[row]:", "            if False:", ("cache",)),
    Mutation("a chunk that was cut later", "teachers/chunk_rows.py", "            if not count:\n                raise damaged(self.path, \"was cut since it was opened\")", "            if not count:\n                break", ("cache",)),
    Mutation("few chunks are open", "teachers/chunk_rows.py", "if len(self._descriptors) >= _MOST_OPEN:", "if False:", ("cache",)),
    Mutation("samples that changed", "teachers/cache.py", "        if len(wrong):\n            sample, view = divmod(int(items", "        if False:\n            sample, view = divmod(int(items", ("cache",)),
    Mutation("a cache for something else", "teachers/cache_index.py", "    if differences:\n", "    if False:\n", ("cache",)),
    Mutation("a chunk of another cache", "teachers/chunk_file.py", 'if metadata.get("key") != spec.key or metadata.get("chunk") != str(spec.chunk):', "if False:", ("cache",)),
    Mutation("order of the items", "teachers/cache.py", "picked.tolist(), found, places.tolist())", "picked.tolist(), found, sorted(places.tolist()))", ("cache",)),
    Mutation("the rest of the top k", "teachers/logit_codec.py", "share = rest - math.log(max(classes - values.shape[2], 1))", "share = rest", ("cache",)),
    Mutation("no batch reaches into another chunk", "teachers/filling.py", "        for items in self._chunks:\n            for start in range(0, len(items), self._batch_size):\n                yield list(items[start : start + self._batch_size])", "        every = [item for items in self._chunks for item in items]\n        for start in range(0, len(every), self._batch_size):\n            yield every[start : start + self._batch_size]", ("filling",)),
    Mutation("a filling leaves the generators alone", "teachers/filling.py", "with cache.filling(rank), keep_random_state():", "with cache.filling(rank):", ("filling",)),
    Mutation("samples of other lengths run apart", "teachers/apart.py", "        if _is_sum(_form(whole.batch), forms):\n", "        if True:\n", ("apart",)),
    Mutation("transforms that draw for themselves", "teachers/trial.py", "if first.checksum != second.checksum:", "if False:", ("trial",)),
    Mutation("teachers who look at their batch", "teachers/trial.py", "    if difference > tolerance * largest:", "    if False:", ("trial",)),
    Mutation("lambda of CutMix is that of its box", "teachers/mixing.py", "1 - (bottom - top) * (right - left) / (height * width)", "lam", ("mixing",)),
    Mutation("shares of both partners", "teachers/mixing.py", "self.lam * own + (1 - self.lam) * partners", "(1 - self.lam) * own + self.lam * partners", ("mixing",)),
    Mutation("each rank draws its own pairs", "teachers/mixing.py", 'seeding.mix("pairs", self.seed, step, batch, rank)', 'seeding.mix("pairs", self.seed, step, batch)', ("mixing",)),
    Mutation("cached logits of the partner", "teachers/objective.py", "teachers = teachers[:, pairs.permutation]", "pass", ("mixing",)),
    Mutation("alpha weighs the labels", "teachers/objective.py", "loss: Tensor = (1 - self._alpha) * self.task", "loss: Tensor = self._alpha * self.task", ("distillation",)),
    Mutation("classes of student and teachers", "teachers/objective.py", "if teachers is not None and teachers.shape[1:] != student.shape:", "if False:", ("tasks of students",)),
    Mutation("the first epoch with teachers", "teachers/schedules.py", "self.from_epoch <= epoch and", "self.from_epoch < epoch and", ("schedules",)),
    Mutation("the first epoch without", "teachers/schedules.py", "epoch < self.until_epoch)", "epoch <= self.until_epoch)", ("schedules",)),
    Mutation("teachers in the order of their training", "teachers/schedules.py", "in_order = sorted(range(len(epochs)), key=lambda place: epochs[place])", "in_order = list(range(len(epochs)))", ("schedules",)),
    Mutation("stages of a route", "teachers/schedules.py", "max(start for start in self.stages if start <= epoch)", "max(start for start in self.stages if start < max(epoch, 1))", ("schedules",)),
    Mutation("the best first", "teachers/choice.py", "for name in Selection.read(store).chosen]", "for name in sorted(Selection.read(store).chosen)]", ("choice",)),
    Mutation("targets of a language model are shifted", "tasks/causal_lm.py", "return targets[:, 1:].reshape(-1).long()", "return targets[:, :-1].reshape(-1).long()", ("causal lm",)),
    Mutation("logits of a language model are shifted", "tasks/causal_lm.py", "output[..., :-1, :]", "output[..., 1:, :]", ("causal lm",)),
    Mutation("order of yes and no", "tasks/binary.py", "torch.stack([torch.zeros_like(z), z], -1)", "torch.stack([z, torch.zeros_like(z)], -1)", ("binary",)),
    Mutation("each label is a unit", "tasks/multilabel.py", "device=targets.device).repeat(len(targets))", "device=targets.device).repeat_interleave(len(targets))", ("multilabel",)),
    Mutation("soft targets sum to 1", "tasks/multiclass.py", "(targets >= 0).all(1) & ((targets", "(targets >= 0).all(1) | ((targets", ("soft", "multiclass")),
    Mutation("squared errors of regression", "tasks/regression.py", "(logits.double() - targets.double()).square().sum(1)", "(logits.double() - targets.double()).abs().sum(1)", ("regression",)),
    Mutation("classes of pixels", "tasks/dense.py", "output.movedim(lead + 1, -1)", "output.movedim(-1, lead + 1)", ("dense",)),
    Mutation("pixels without a label", "tasks/dense.py", "flat != self.ignore_index", "flat == flat", ("dense",)),
    Mutation("a metric over ranks of other means", "tasks/metrics.py", "distance.square() * first[0] * share", "distance.square() * share", ("regression",)),
    Mutation("hooks run in eval mode", "tasks/transfer.py", "        part.training = False\n", "        pass\n", ("transfer",)),
    Mutation("the mode after the hooks", "tasks/transfer.py", "            part.training = True\n", "            pass\n", ("transfer",)),
    Mutation("the order of the hooks", "tasks/transfer.py", 'return self._call("on_after_batch_transfer", batch, dataloader_idx)', "return batch", ("transfer",)),
    Mutation("samples of weight 0", "tasks/loaders.py", "return sampler.weights.nonzero().squeeze(1)", "return torch.arange(size)", ("loaders",)),
    Mutation("samples of a subset", "tasks/loaders.py", "return torch.tensor(sorted(set(sampler.indices)), dtype=torch.long)", "return torch.arange(size)", ("loaders",)),
    Mutation("integers beside one output", "tasks/infer.py", "        return regression  # integers", "        return [Regression.name]  # integers", ("infer",)),
    Mutation("keywords that forward takes", "tasks/calling.py", "named = {name: value for name, value in inputs.items() if name in takes.names}", "named = dict(inputs)", ("calling",)),
    Mutation("the probe is drawn by seed", "selecting/probe.py", "torch.Generator().manual_seed(seed)\n    drawn", "torch.Generator().manual_seed(0)\n    drawn", ("probe",)),
    Mutation("the smallest probe set", "selecting/probe.py", "if found < MIN_PROBE_SIZE:", "if False:", ("probe",)),
    Mutation("padding in a mean over positions", "selecting/pooling.py", "_mean(features, mask.cpu())", "features.mean(1)", ("pooling",)),
    Mutation("which dimension counts samples", "selecting/pooling.py", "features if self._dim != 1 else features.transpose(0, 1)", "features", ("pooling",)),
    Mutation("rows of a sample are in one fold", "selecting/rows.py", "self.folds if self.samples is None else self.folds[self.samples]", "self.folds if self.samples is None else assign_folds(len(self.samples), NUM_FOLDS, self.seed)", ("rows",)),
    Mutation("rows are drawn by their sample", "selecting/rows.py", "(_MIXER * seed + number) % 2**32", "(_MIXER * seed) % 2**32", ("rows",)),
    Mutation("the learning rate of a proxy falls", "selecting/proxy_students.py", "lambda step: 1 - step / steps", "lambda step: 1.0", ("proxy",)),
    Mutation("alpha of a proxy", "selecting/proxy_students.py", "loss = proxy.alpha * task.hard_loss", "loss = (1 - proxy.alpha) * task.hard_loss", ("proxy",)),
    Mutation("the module is handed back as it came", "selecting/borrowing.py", "                value.copy_(weights[name])\n", "                pass\n", ("selector",)),
    Mutation("a module's mode is handed back", "selecting/borrowing.py", "            child.training = mode\n", "            pass\n", ("selector",)),
    Mutation("snapshots are scored in eval mode", "selecting/snapshot_scorer.py", "        self._module.eval()\n        return extract", "        return extract", ("selector",)),
    Mutation("what a rule's loss is of", "selecting/rules/held_out.py", "rows.term(-costs if surprises", "rows.term(costs if surprises", ("held out",)),
    Mutation("a soup's mean is over its members", "snapshots/averaging.py", "(total / size).to(value.dtype)", "(total / self.size).to(value.dtype)", ("averaging",)),
    Mutation("sums of a soup are wide", "snapshots/averaging.py", "torch.float32 if value.itemsize == 2 else torch.float64", "value.dtype", ("averaging",)),
    Mutation("numbers of few bits have no mean", "snapshots/averaging.py", "weights[key].itemsize < 2 and", "False and", ("averaging",)),
    Mutation("tied weights stay tied in a soup", "snapshots/averaging.py", "if theirs.get(key) == stored}", "}", ("averaging",)),
    Mutation("names of a soup's members", "snapshots/averaging.py", "        if differences:", "        if False:", ("averaging",)),
    Mutation("statistics of a soup are unbiased", "selecting/batch_norm.py", "copy_(unbiased * ((count - 1) / max(1, count)))", "copy_(unbiased)", ("batch norm",)),
    Mutation("a frozen layer keeps its statistics", "selecting/batch_norm.py", "if plain[name] in changed}", "}", ("batch norm", "soup")),
    Mutation("who joins a soup adds to it", "selecting/soup_builder.py", "joins = gain > self._soup.margin * error and gain > 0", "joins = True", ("soup",)),
    Mutation("a soup that loses is not taken", "selecting/soup_builder.py", "        if gain <= 0:", "        if False:", ("soup",)),
    Mutation("a soup is held against its best member", "selecting/soup_builder.py", "_gain(taste.found.term, best.term)", "_gain(taste.found.term, members[-1].term)", ("soup",)),
    Mutation("the weights of a soup have its statistics", "selecting/soup_builder.py", "_Taste({**weights, **estimated}, found)", "_Taste(weights, found)", ("soup",)),
    Mutation("a window is around the best", "selecting/soup_builder.py", "(abs(member.place - first.place), -member.place)", "(-member.place, -member.place)", ("soup",)),
    Mutation("a soup is one of the manifest", "snapshots/selection.py", "is_soup = name == soup.get(\"file\") and (name, soup[\"sha256\"]) in soups", "is_soup = name == soup.get(\"file\")", ("selection", "soup")),
    Mutation("a race's errors are those of all samples", "information/racing.py", "margin = sure * math.sqrt(1 - share) * errors", "margin = 0 * errors", ("race",)),
    Mutation("a race keeps whom the set would miss", "information/racing.py", "better.any(0) & (not_behind.sum(0) >= count)", "better.any(0)", ("race",)),
    Mutation("the last snapshot never leaves a race", "selecting/race.py", "if goes and place != running[-1]:", "if goes:", ("race",)),
    Mutation("a survivor's samples are in their order again", "selecting/race.py", "places = self._order.argsort()", "places = self._order", ("race",)),
    Mutation("a race is over all snapshots and parts", "information/racing.py", "1 - DOUBT / (num_snapshots * num_parts)", "1 - DOUBT", ("race",)),
    Mutation("a damaged file of a known score", "selecting/race.py", "            item.verify()\n", "            pass\n", ("race",)),
    Mutation("the last snapshot's temperature over each teacher's", "teachers/scales.py", "return [reference / temperature for", "return [temperature / reference for", ("scales",)),
    Mutation("a set stays as it is by auto", "teachers/scales.py", "    if not any(isinstance(snapshot, SoupSnapshot) for snapshot in chosen):\n        return as_they_are\n", "", ("distillation",)),
    Mutation("a temperature at an end of the range", "teachers/scales.py", "if any(not COLDEST * _NEAR <", "if any(False and not COLDEST * _NEAR <", ("scales",)),
    Mutation("standardised by sample", "losses/scale.py", "rows - rows.mean(1, keepdim=True)", "rows - rows.mean()", ("scale",)),
    Mutation("each teacher has its own scale", "losses/scale.py", "scales.to(logits.device, logits.dtype)[:, None, None]", "scales.to(logits.device, logits.dtype).mean()", ("scale",)),
    Mutation("a loss too little to matter", "selecting/worth.py", "if sure and lacks >= LEAST_NATS:", "if sure:", ("worth",)),
    Mutation("a probe too coarse to tell", "selecting/worth.py", "if not sure and course.most * error > COARSE_NATS:", "if False:", ("worth",)),
    Mutation("more snapshots differ more by chance", "selecting/worth.py", "student_quantile(1 - _DOUBT / len(everybody),", "student_quantile(1 - _DOUBT,", ("worth",)),
    Mutation("what a soup is worth is its own", "selecting/worth.py", "if self.soup is not None:\n            pair", "if False:\n            pair", ("default ensemble",)),
    Mutation("no sample decides", "information/robust.py", "return values.clamp(*fences(values))", "return values", ("robust",)),
    Mutation("logits far outside are pulled in", "information/robust.py", "    if not bool(outside.any()):\n        return rows\n", "    if True:\n        return rows\n", ("robust",)),
    Mutation("the slope of a temperature", "information/temperature.py", "slope += float((mean - right).sum())", "slope += float((right - mean).sum())", ("temperature",)),
    Mutation("stacked students do what one alone does", "selecting/proxy_students.py", "return students if same else None", "return students", ("proxy",)),
    Mutation("students draw the same random numbers", "selecting/proxy_students.py", "        state.restore()\n        if stacked is not None:", "        if stacked is not None:", ("proxy",)),
    Mutation("half precision that the processor has", "teachers/calibration.py", "if getattr(self, name) and has_instructions(device, dtype)]", "if getattr(self, name)]", ("calibration",)),
    Mutation("limits of a training", "trainer/length.py", "return min(max(shares), 1.0)", "return min(min(shares), 1.0)", ("length",)),
    Mutation("steps of several optimisers", "trainer/length.py", "done = trainer.current_epoch * windows + trainer.fit_loop.batch_idx // accumulated", "done = trainer.global_step", ("length",)),
    Mutation("data without a length", "trainer/length.py", "epochs > 0 and 0 < batches < math.inf:", "epochs > 0 and 0 < batches:", ("length",)),
    Mutation("steps that Lightning does not count", "trainer/length.py", "if trainer is None or module.global_step:", "if True:", ("length",)),
]  # fmt: skip


def main() -> None:
    """Run the check and write which test file noticed each mutation, after each of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="part of a guard's name; the other results are kept")
    parser.add_argument("--start", help="part of the name of the first guard that is tried; likewise")
    parser.add_argument("--new", action="store_true", help="those alone that the file has no result of")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mutations.json"))
    options = parser.parse_args()
    repository = Path(__file__).parents[2]
    chosen = [mutation for mutation in MUTATIONS if (options.only or "") in mutation.guard]
    while options.start and options.start not in chosen[0].guard:
        del chosen[0]
    known = json.loads(options.out.read_text())["noticed_by"] if options.out.exists() else {}
    chosen = [mutation for mutation in chosen if not (options.new and mutation.guard in known)]
    names = {mutation.guard for mutation in MUTATIONS}
    tried = {mutation.guard for mutation in chosen}
    results: dict[str, str | None] = {name: known[name] for name in known if name in names - tried}
    with tempfile.TemporaryDirectory(prefix="ckptkd-") as scratch:
        copy = Path(scratch) / "copy"
        for name in (_PACKAGE, "tests", "configs"):
            shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(repository / "pyproject.toml", copy)
        _check_texts(copy, chosen)
        sound: set[str] = set()
        for mutation in chosen:
            for name in set(mutation.tests) - sound:
                if _run(copy, name) != pytest.ExitCode.OK:
                    raise SystemExit(f"{_TESTS[name]} fails as it is: {_log(copy)}")
                sound.add(name)
            results[mutation.guard] = _try(copy, mutation)
            print(f"{mutation.guard}: {results[mutation.guard] or 'NOT NOTICED'}", flush=True)
            _write(options.out, results)


def _write(out: Path, results: dict[str, str | None]) -> None:
    missed = [guard for guard, noticed in results.items() if noticed is None]
    document = {
        "command": "python -m benchmarks.reliability.mutations",
        "cores": os.cpu_count(),
        "mutations": len(results),
        "noticed": len(results) - len(missed),
        "not_noticed": missed,
        "noticed_by": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


def _check_texts(copy: Path, mutations: list[Mutation]) -> None:
    """Check that each mutation is of code as it is now."""
    for mutation in mutations:
        count = (copy / _PACKAGE / mutation.file).read_text().count(mutation.old)
        if count != 1:
            raise SystemExit(f"{mutation.guard}: {mutation.file} holds {mutation.old!r} {count} times")


def _try(copy: Path, mutation: Mutation) -> str | None:
    """The test file that failed (or ended in another way, or not at all), or None."""
    path = copy / _PACKAGE / mutation.file
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        for name in mutation.tests:
            status = _run(copy, name)
            if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
                raise SystemExit(f"{mutation.guard}: {_log(copy)}")
            if status != pytest.ExitCode.OK:
                return _TESTS[name]
    finally:
        path.write_text(text)
    return None


def _run(copy: Path, name: str) -> int | None:
    """Exit status of some tests; None where they hang."""
    try:
        return wait(fork(partial(_run_tests, copy, _TESTS[name], copy / "log.txt")), seconds=_SECONDS)
    except TimeoutError:
        return None


def _log(copy: Path) -> str:
    return (copy / "log.txt").read_text()[-3000:]


def _run_tests(copy: Path, tests: str, log: Path) -> None:
    """Run tests of the copy in this process, which has torch and Lightning but nothing of the package."""
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "benchmarks")]:
        del sys.modules[name]
    os.chdir(copy)
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(copy)]
    warned = "ignore::pytest.PytestAssertRewriteWarning"  # of plugins that Lightning has imported already
    os._exit(int(pytest.main(["-q", "-x", "-W", warned, "-p", "no:cacheprovider", tests])))


if __name__ == "__main__":
    main()
