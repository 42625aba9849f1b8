"""The 1.2 rule: multiply a method's key quantity by 1.2, and its tests must go red.

Each case copies the package, wraps one function so that what it returns is 1.2 times too large, and runs the method's own test file
against the copy, in a process of its own.

A whole file is long, and one red test is enough: killers.json remembers which one it was, and that one runs first. If it is green, or not
there any more, the whole file decides, as it does for a case that killers.json doesn't know. The file only saves time; renew it with

    pytest tests/contract/test_mutations.py --renew-killers
"""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock
from tests.contract.mutant import ROOT, run_tests_against

from bigbatch.core.paper import find_papers

TIMES = """
import functools as _functools


def _times(value):
    field = "{field}"
    if field:
        old = getattr(value, field)
        return value._replace(**{{field: old if old is None else old * 1.2}})
    return value * 1.2


_original = {target}


@_functools.wraps(_original)
def _wrong(*args, **kwargs):
    return _times(_original(*args, **kwargs))


{target} = _wrong
"""

# module, function, field of a named tuple (or ""), test file (the module's own if left out)
CASES = [
    ("scaling.rules.linear", "linear_lr", "", None),
    ("scaling.rules.sqrt", "sqrt_lr", "", None),
    ("scaling.rules.regime", "longer", "", None),
    ("scaling.rules.legw", "legw_lr", "", None),
    ("scaling.rules.legw", "legw_warmup_epochs", "", None),
    ("scaling.rules.adamw", "beta2_at", "", None),
    ("scaling.rules.sde", "beta_at", "", None),
    ("scaling.rules.sde", "eps_at", "", None),
    ("scaling.rules.sde", "largest_inside", "", None),
    ("scaling.rules.timescale", "timescale_decay", "", None),
    ("schedules.gradual_warmup", "gradual_warmup", "", None),
    ("schedules.constant_warmup", "constant_warmup", "", None),
    ("schedules.cosine", "cosine", "", None),
    ("schedules.polynomial", "polynomial", "", None),
    ("schedules.autowu", "growth", "", None),
    ("schedules.autowu", "AutoWU.judgement", "factor", None),
    ("schedules.loss_curve", "curve_of", "turned", "schedules/test_autowu.py"),
    ("schedules.gaussian_process", "rise", "", None),
    ("schedules.momentum_correction", "corrected_momentum", "", None),
    ("schedules.compose", "Product.__call__", "", None),
    ("schedules.compose", "InTurn.__call__", "", None),
    ("schedules.clock_lr", "_peak", "", None),
    ("schedules.linear", "linear", "", None),
    ("schedules.step_decay", "step_decay", "", None),
    ("schedules.constant", "constant", "", None),
    ("optim.lars", "trust_ratio", "", None),
    ("optim.lars", "_ratio", "", None),
    ("comm.compression.top_k", "num_sent", "", None),
    ("comm.compression.quantized", "block_scales", "", None),
    ("comm.compression.quantized", "decode", "", None),
    ("comm.compression.quantized", "payload_bytes", "", None),
    ("comm.compression.quantized", "Quantized.sent_bytes", "", None),
    ("comm.compression.sparse_loco", "num_sent", "", None),
    ("comm.compression.sparse_loco", "two_magnitudes", "pair", None),
    ("comm.compression.sparse_loco", "payload_bytes", "", None),
    ("comm.compression.sparse_loco", "SparseLoCo.sent_bytes", "", None),
    ("comm.compression.compressor", "Compressor.sent_bytes", "", "comm/compression/test_quantized.py"),
    ("comm.local.local_sgd", "next_average", "", None),
    ("comm.local.diloco", "displacement_of", "", None),
    ("comm.local.muloco", "DiLoCo.displacement", "", None),
    ("comm.local.streaming_diloco", "mixed", "", None),
    ("comm.local.noloco", "noloco_step", "", None),
    ("scaling.local", "local_steps", "period", None),
    ("comm.gossip.decentlam", "corrected_gradient", "", None),
    ("comm.gossip.ad_psgd", "average_with_neighbour", "", None),
    ("comm.gossip.d_psgd", "Gossip._flat_weights", "", None),
    ("comm.gossip.dmsgd", "Gossip._flat_weights", "", None),
    ("comm.parameter_server.async_sgd", "largest_lr", "", None),
    ("comm.parameter_server.async_sgd", "equivalent_settings", "lr", None),
    ("comm.parameter_server.async_sgd", "equivalent_settings", "weight_decay", None),
    ("comm.parameter_server.staleness", "damping_factor", "", None),
    ("comm.parameter_server.staleness", "damped", "factor", None),
    ("comm.parameter_server.backup_workers", "num_gradients", "", None),
    ("comm.parameter_server.backup_workers", "update_seconds", "", None),
    ("comm.parameter_server.decoupled_diloco", "LocalUpdates.clock", "samples", None),
    ("optim.lamb", "trust_ratio", "", None),
    ("optim.adamp", "decayed_fraction", "", None),
    ("optim.sgdp", "decayed_fraction", "", None),
    ("optim.projection", "radial", "coefficients", "optim/test_adamp.py"),
    ("optim.projection", "radial", "coefficients", "optim/test_sgdp.py"),
    ("optim.muon.muon", "orthogonalise", "", None),
    ("optim.muon.soap_muon", "orthogonalise", "", None),
    ("optim.muon.newton_schulz", "orthogonalise", "", "optim/muon/test_muon.py"),
    ("optim.muon.newton_schulz", "matched_rms", "", "optim/muon/test_muon.py"),
    ("optim.muon.linear_maps", "use_of", "matrices", "optim/test_muon_groups.py"),
    ("core.student", "student_quantile", "", None),
    ("core.student", "fisher_tail", "", None),
    ("core.student", "incomplete_beta", "", None),
    ("core.tensors.matrices", "as_matrices", "", None),
    ("core.tensors.matrices", "from_matrices", "", None),
    ("scaling.rules.muon", "muon_rates", "lr", "scaling/rules/test_switch.py"),
    ("scaling.rules.muon", "matched_rates", "lr", "scaling/rules/test_switch.py"),
    ("scaling.rules.muon", "matched_rates", "adam_lr", "scaling/rules/test_switch.py"),
    ("scaling.rules.weight_decay", "sum_of_factors", "", "scaling/rules/test_weight_decay.py"),
    ("scaling.rules.weight_decay", "total_shrinkage", "", None),
    ("scaling.rules.weight_decay", "decay_for_shrinkage", "", None),
    ("scaling.rules.linear", "ramp", "start_factor", None),
    ("scaling.warnings", "largest_factor", "", None),
    ("schedules.wsd", "wsd", "", None),
    ("scaling.rules.lars", "lars_lr", "", "scaling/rules/test_switch.py"),
    ("scaling.rules.lamb", "lamb_lr", "", "scaling/rules/test_switch.py"),
    ("scaling.rules.adam", "adam_lr", "", "scaling/rules/test_switch.py"),
    ("batching.decision", "Bounds.nearest", "", None),
    ("batching.smoothed", "noise_scale", "", None),
    ("batching.smoothed", "SmoothedNoise.mean", "", None),
    ("batching.increase_batch", "temperature", "", None),
    ("batching.increase_batch", "batch_for_decay", "global_batch", None),
    ("batching.increase_batch", "batch_for_decay", "rate_factor", None),
    ("batching.increase_batch", "momentum_start", "", None),
    ("batching.adabatch", "adabatch", "global_batch", None),
    ("batching.adabatch", "adabatch", "rate_factor", None),
    ("batching.decay_to_batch", "batch_at_decay", "", "batching/test_increase_batch.py"),
    ("batching.decay_to_batch", "batch_at_decay", "", "batching/test_seesaw.py"),
    ("batching.seesaw", "seesaw", "global_batch", None),
    ("batching.seesaw", "seesaw", "rate_factor", None),
    ("batching.batch_steps", "rate_factor", "", None),
    ("batching.ramp", "ramped", "", None),
    ("batching.late_switch", "samples_before", "", None),
    ("batching.noise_scale", "batch_of_noise_scale", "", None),
    ("batching.norm_test", "norm_test", "", None),
    ("batching.norm_test", "required_batch", "", None),
    ("batching.inner_product_test", "inner_product_test", "", None),
    ("batching.cabs", "cabs", "", None),
    ("batching.simigrad", "similarity", "", None),
    ("batching.simigrad", "next_batch", "", None),
    ("batching.simigrad", "batch_at_similarity", "", None),
    ("batching.divebatch", "num_diverse", "", None),
    ("batching.divebatch", "divebatch", "", None),
    ("batching.goodput", "fit_update_time", "alpha_s", None),
    ("batching.goodput", "fit_update_time", "beta_s_per_sample", None),
    ("batching.goodput", "efficiency", "", None),
    ("batching.goodput", "goodput", "", None),
    ("batching.goodput", "best_batch", "", None),
    ("batching.absa", "absa", "reference", None),
    ("batching.absa", "grown_batch", "", None),
    ("batching.absa", "share_left", "", None),
    ("batching.adascale", "gain", "", None),
    ("batching.adascale", "smoothing", "", None),
    ("layers.ghost_batch_norm", "GhostBatchNorm.forward", "", None),
    ("layers.quantized_batch_norm", "fold_batch_norm", "a", None),
    ("layers.quantized_batch_norm", "fold_batch_norm", "b", None),
    ("layers.quantized_batch_norm", "exact_levels", "", None),
    ("layers.integer_affine", "plain_rounding", "A", None),
    ("layers.integer_affine", "plain_rounding", "B", None),
    ("layers.integer_affine", "largest_intermediate", "", None),
    ("layers.integer_network", "_round_weights_", "", None),
    ("layers.normalise_groups", "normalise_groups", "", "layers/test_ghost_batch_norm.py"),
    ("layers.precise_statistics", "population", "mean", None),
    ("layers.precise_statistics", "population", "var", None),
    ("layers.split_batch_norm", "SplitBatchNorm.forward", "", None),
    ("adversarial.fgsm", "fgsm_step", "", None),
    ("adversarial.fgsm", "input_gradient", "", None),
    ("adversarial.concurrent", "loss_weights", "clean", None),
    ("adversarial.concurrent", "loss_weights", "adversarial", None),
    ("adversarial.concurrent", "share_at", "", None),
    ("curvature.products.hessian", "Hessian.__call__", "", None),
    ("curvature.products.hessian", "Hessian.gradient", "", None),
    ("curvature.products.gauss_newton", "GaussNewton.__call__", "", None),
    ("curvature.spectrum.lanczos", "top_eigenvalues", "values", None),
    ("curvature.spectrum.lanczos", "top_eigenvalues", "residuals", None),
    ("curvature.spectrum.trace", "trace", "value", None),
    ("curvature.spectrum.trace", "trace", "standard_error", None),
    ("curvature.spectrum.trace", "complement_samples", "", None),
    ("curvature.spectrum.trace", "removed", "", None),
    ("curvature.spectrum.spectral_density", "spectral_density", "nodes", None),
    ("curvature.spectrum.spectral_density", "spectral_density", "weights", None),
    ("curvature.landscape.sharpness", "phi", "", None),
    ("curvature.landscape.sharpness", "half_width", "", None),
    ("curvature.landscape.sharpness", "highest_in_box", "value", None),
    ("curvature.landscape.sam_sharpness", "ascent_step", "", None),
    ("curvature.landscape.sam_sharpness", "sam_sharpness", "value", None),
    ("curvature.landscape.adaptive_sharpness", "scale_of", "", None),
    ("curvature.landscape.path", "shares", "start", None),
    ("curvature.landscape.path", "shares", "end", None),
    ("curvature.landscape.path", "mixed", "", None),
    ("core.tensors.norms", "sq_norm", "", None),
    ("core.tensors.norms", "ratio_or_one", "", None),
    ("core.tensors.average", "RunningMean.update", "biased", None),
    ("study.comparison.noninferiority", "noninferiority", "difference", None),
    ("study.comparison.noninferiority", "noninferiority", "lower", None),
    ("study.comparison.group_sequential", "obrien_fleming", "", None),
    ("study.comparison.group_sequential", "pocock", "", None),
    ("study.comparison.verdict", "judge_seeds", "difference", None),
    ("study.comparison.verdict", "judge_seeds", "lower", None),
    ("study.comparison.verdict", "judge_seeds", "upper", None),
    ("study.comparison.verdict", "Rate.at_most", "", None),
    ("study.comparison.verdict", "power", "runs", None),
    ("simulate.alpha_beta", "fit_alpha_beta", "alpha_s", None),
    ("simulate.alpha_beta", "fit_alpha_beta", "beta_s_per_byte", None),
    ("simulate.alpha_beta", "ring_all_reduce", "alpha_s", None),
    ("simulate.alpha_beta", "ring_link", "beta_s_per_byte", None),
    ("simulate.link", "link_of", "beta_s_per_byte", None),
    ("simulate.all_reduce", "ring", "beta_s_per_byte", None),
    ("simulate.all_reduce", "halving_doubling", "alpha_s", None),
    ("simulate.all_reduce", "halving_doubling", "beta_s_per_byte", None),
    ("simulate.all_reduce", "tree", "alpha_s", None),
    ("simulate.all_reduce", "tree", "beta_s_per_byte", None),
    ("simulate.all_reduce", "crossing_bytes", "", None),
    ("simulate.gloo_ring", "gloo_ring_s", "", None),
    ("simulate.overlap", "backward_and_exchange_s", "", None),
    ("simulate.straggler", "expected_largest", "", None),
    ("simulate.straggler", "slowest_nearby", "", None),
    ("simulate.gossip", "exchange_s", "", None),
    ("simulate.parameter_server", "synchronous_s", "", None),
    ("simulate.parameter_server", "asynchronous_s", "", None),
    ("simulate.compression", "powersgd_bytes", "", None),
    ("simulate.compression", "top_k_s", "", None),
    ("simulate.strategies", "seconds_per_update", "", None),
    ("simulate.strategies", "update_cost", "seconds", None),
    ("simulate.strategies", "update_cost", "sent_bytes", None),
    ("simulate.strategies", "update_cost", "goodput", None),
    ("simulate.straggler", "deviation_of_largest", "", None),
    ("simulate.straggler", "slowest_group", "", None),
    ("simulate.gossip", "mean_degree", "", None),
    ("simulate.outer", "quantized_bytes", "", None),
    ("simulate.outer", "sparse_bytes", "", None),
    ("simulate.outer", "gather_s", "", None),
    ("simulate.outer", "quantized_all_reduce_s", "", None),
    ("simulate.outer", "pair_s", "", None),
    ("simulate.outer", "streaming_s", "", None),
    ("simulate.churn", "redone", "", None),
    ("simulate.churn", "left_out", "", None),
    ("simulate.discrete_event", "Network.send", "", None),
    ("study.critical.time_to_target", "_way", "seconds", None),
    ("study.critical.time_to_target", "_way", "worker_hours", None),
    ("core.hardware.machine", "matmul_gflops", "", None),
    ("core.tensors.ordered_sum", "add_in_order", "", None),
    ("noise.lack_of_fit", "f_test", "", "noise/test_critical_batch.py"),
    ("noise.scaling_regimes", "Regimes.updates", "", None),
    ("noise.scaling_regimes", "fewest_updates", "value", None),
    ("noise.scaling_regimes", "fewest_updates", "upper", None),
    ("noise.scaling_regimes", "_fit", "perfect_until", None),
    ("noise.scaling_regimes", "_fit", "maximal_from", None),
    ("noise.scaling_regimes", "_fit", "level", None),
    ("noise.scaling_regimes", "_fit", "scatter", None),
    ("noise.scaling_regimes", "_slope", "", None),
    ("noise.branches", "effective_samples", "", None),
    ("noise.branches", "local_critical_batch", "gain", None),
    ("noise.branches", "local_critical_batch", "power", None),
    ("noise.branches", "largest_held", "", None),
    ("noise.branches", "expected_factor", "", None),
    ("study.branches.batch_schedule", "_at", "", None),
    ("noise.critical_batch", "steps_needed", "", None),
    ("noise.critical_batch", "samples_needed", "", None),
    ("noise.critical_batch", "overhead", "steps_ratio", None),
    ("noise.critical_batch", "overhead", "samples_ratio", None),
    ("noise.critical_batch", "_interval", "value", None),
    ("noise.critical_batch", "_interval", "lower", None),
    ("noise.critical_batch", "_interval", "upper", None),
    ("noise.critical_batch", "fit_critical_batch", "sigma", None),
    ("noise.critical_batch", "min_steps_at", "", None),
    ("noise.power_law", "_fit", "slope", None),
    ("noise.power_law", "_fit", "misfit", None),
    ("noise.power_law", "_scatter", "", None),
    ("noise.power_law", "_exp", "", None),
    ("noise.simple_noise_scale", "simple_noise_scale", "signal", None),
    ("noise.simple_noise_scale", "simple_noise_scale", "noise", None),
    ("noise.simple_noise_scale", "noise_of_groups", "signal", None),
    ("noise.simple_noise_scale", "noise_of_groups", "noise", None),
    ("noise.interval", "ratio_of_means", "value", None),
    ("noise.interval", "ratio_of_means", "lower", None),
    ("noise.interval", "ratio_of_means", "upper", None),
    ("noise.estimate", "estimate", "noise_scale", None),
    ("noise.estimate", "NoiseEstimate.in_tokens", "noise_scale", None),
    ("study.tokens", "mean_weight", "", None),
    ("noise.reader", "Reader._rows", "", "noise/test_monitor.py"),
    ("noise.preconditioned", "adam_preconditioned", "", None),
    ("noise.preconditioned", "muon_preconditioned", "", None),
    ("noise.norm_layers", "slope", "", None),
    ("noise.dual_norm", "polar", "", None),
    ("noise.dual_norm", "plug_in", "", None),
    ("noise.dual_norm", "alignment", "small", None),
    ("noise.dual_norm", "alignment", "large", None),
    ("noise.dual_norm", "dual_noise", "signal", None),
    ("noise.dual_norm", "dual_noise", "noise", None),
    ("noise.dual_norm", "pairings", "", "noise/test_dual_norm_monitor.py"),
    ("noise.multiplicative_noise", "noise_variance", "", None),
    ("noise.multiplicative_noise", "noise_factors", "", None),
    ("noise.weight_distance", "distance", "", None),
    ("noise.weight_distance", "fit_log", "slope", None),
    ("noise.weight_distance", "fit_log", "intercept", None),
    ("noise.per_example", "noise_of_examples", "noise", None),
    ("train.control.rate_source", "GainRate.factor", "", "train/control/test_control.py"),
    ("train.control.rate_source", "ScaledRate.factor", "", "train/control/test_curvature_batch.py"),
    ("train.adversarial.replaced_samples", "ReplacedSamples._with_first", "", "train/control/test_curvature_batch.py"),
    ("train.update.gradient_accumulation", "accumulate_gradients", "", None),
    ("train.update.weighted_mean", "read_weights", "total", "train/test_structures.py"),
    ("train.measure.evaluate", "evaluate", "score", "train/test_loop.py"),
]


KILLERS = Path(__file__).with_name("killers.json")


def killers():
    return json.loads(KILLERS.read_text()) if KILLERS.exists() else {}


def name_of(module, target, field, test):
    """Of a case, without folders, so that files may move."""
    return " ".join(filter(None, [module.rpartition(".")[2], target, field, (test or "").rpartition("/")[2]]))


def remember(case, test):
    with FileLock(Path(tempfile.gettempdir(), "bigbatch-killers.lock")):
        KILLERS.write_text(json.dumps(killers() | {case: test}, indent=1, sort_keys=True) + "\n")


def is_red(done):
    return done.returncode == 1 and " failed" in done.output


def copy_of_the_package(tmp_path):
    shutil.copytree(ROOT / "src" / "bigbatch", tmp_path / "bigbatch", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("module", "target", "field", "test"), CASES, ids=lambda value: str(value or "-"))
def test_a_quantity_times_1_2_turns_its_tests_red(tmp_path, pytestconfig, module, target, field, test):
    copy = copy_of_the_package(tmp_path)
    path = copy / "bigbatch" / f"{module.replace('.', '/')}.py"
    path.write_text(path.read_text() + TIMES.format(target=target, field=field))
    folder, _, name = module.rpartition(".")
    file, case, renew = (
        test or f"{folder.replace('.', '/')}/test_{name}.py",
        name_of(module, target, field, test),
        pytestconfig.getoption("--renew-killers"),
    )
    killer = None if renew else killers().get(case)
    if killer and is_red(run_tests_against(copy, f"{file}::{killer}")):
        return
    done = run_tests_against(copy, file)
    assert is_red(done), f"{module}.{target} times 1.2 passed its tests, or broke them otherwise:\n{done.output[-2000:]}"
    if renew:
        remember(case, done.red)


def test_killers_know_no_two_cases_by_one_name():
    assert len({name_of(*case) for case in CASES}) == len(CASES)


def test_without_a_mutation_the_same_run_is_green(tmp_path):
    """The guard of the guard: the copy is what is tested, and untouched it passes."""
    copy = copy_of_the_package(tmp_path)
    assert run_tests_against(copy, "schedules/test_cosine.py").returncode == 0
    (copy / "bigbatch" / "__init__.py").write_text("raise RuntimeError('the copy')\n")
    assert "the copy" in run_tests_against(copy, "schedules/test_cosine.py").output


def test_every_method_with_a_paper_has_a_case():
    assert {f"bigbatch.{module}" for module, *_ in CASES} >= set(find_papers())
