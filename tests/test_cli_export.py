"""`gorl export`: policies as files, and what it says where one cannot be written."""

import importlib.util
import json
import pathlib
import re
import sys

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

import gorl
import gorl_cli._export
from gorl_cli._export import check_export, export
from gorl_cli._process import check_output


@pytest.fixture(scope="module")
def observation():
    return np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def refuse_to_compute(monkeypatch):
    def refuse(*_):
        raise AssertionError("nothing was to be computed")

    monkeypatch.setattr(gorl_cli._export, "_KINDS", dict.fromkeys(gorl_cli._export._KINDS, refuse))


@pytest.fixture
def without_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # an import of it fails


def run(path, *inputs):
    if path.suffix.lower() == ".stablehlo":
        return jax.export.deserialize(path.read_bytes()).call(*inputs)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([known.name for known in session.get_inputs()], inputs, strict=True)))[0]


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_path_without_a_suffix_gets_both_files(make_policy, tmp_path, capsys, observation):
    policy = make_policy(3, 2, plain=True)
    export(policy, tmp_path / "policy", "latent")
    assert names(tmp_path) == ["policy.onnx", "policy.stablehlo"]
    output = capsys.readouterr()
    assert output.err == ""
    modes = jax.vmap(policy.mode)(observation)
    lines = output.out.splitlines()
    for line, file in zip(lines, (tmp_path / "policy.stablehlo", tmp_path / "policy.onnx"), strict=True):
        size = round(file.stat().st_size / 1000)
        signature = "observation float32[batch, 3], latent float32[batch, 2] -> action float32[batch, 2]"
        assert line == f"{file}, {size} kB: {signature}"
        np.testing.assert_allclose(run(file, observation, np.zeros((5, 2), np.float32)), modes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".stablehlo", ".ONNX"])
def test_a_suffix_decides_the_kind_and_what_was_there_is_replaced(make_policy, tmp_path, observation, suffix):
    policy, path = make_policy(3, 2, plain=True), tmp_path / f"policy{suffix}"
    path.write_bytes(b"what was there" * 10_000)
    export(policy, path, "latent")
    assert names(tmp_path) == [path.name]
    modes = jax.vmap(policy.mode)(observation)
    np.testing.assert_allclose(run(path, observation, np.zeros((5, 2), np.float32)), modes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["policy", "policy.stablehlo"])
def test_a_seed_gets_a_stablehlo_only(make_policy, tmp_path, capsys, observation, name):
    policy, path = make_policy(3, 2, plain=True), tmp_path / "policy.stablehlo"
    export(policy, tmp_path / name, "seed")
    assert names(tmp_path) == [path.name]
    output = capsys.readouterr()
    assert ": observation float32[batch, 3], seed uint32[batch] -> action float32[batch, 2]" in output.out
    assert output.err == ""
    seed = np.arange(5, dtype=np.uint32)
    drawn = jax.vmap(lambda observation, seed: policy(observation, jax.random.key(seed)))(observation, seed)
    np.testing.assert_allclose(run(path, observation, seed), drawn, rtol=0, atol=1e-5)


def test_noise_of_several_axes_is_said_in_full(tmp_path, capsys):
    learner = gorl.DPPO(policy_width=8, policy_depth=1, value_width=1, value_depth=1, num_steps=4)
    encoder = learner.encoder(learner.init(3, 2, jax.random.key(0)))
    export(gorl.Policy(encoder, gorl.IdentityDecoder(), 3, 2), tmp_path / "policy.onnx", "latent")
    assert "latent float32[batch, 5, 2] -> " in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[1].shape == ["batch", 5, 2]


# --- Where only one of both can be written ---


def test_without_onnx_it_says_how_to_get_the_other_file(make_policy, without_onnx, tmp_path, capsys):
    export(make_policy(3, 2, plain=True), tmp_path / "policy", "latent")
    output = capsys.readouterr()
    assert names(tmp_path) == ["policy.stablehlo"]
    assert len(output.out.splitlines()) == 1
    assert f"{tmp_path / 'policy.onnx'} is left out" in output.err
    assert "pip install 'gorl[onnx]'" in output.err


def test_an_onnx_that_cannot_be_is_left_out_or_refused(make_policy, tmp_path, capsys):
    policy = make_policy(3, 2)
    other = gorl.FlowMatching(width=16, depth=1, solver="Tsit5", rtol=1e-3, atol=1e-3)
    integrator = other.init(policy.encoder.statistics, 2, jax.random.key(0)).integrator
    policy = eqx.tree_at(lambda p: p.decoder.decoder.integrator, policy, integrator)
    export(policy, tmp_path / "policy", "latent")
    assert names(tmp_path) == ["policy.stablehlo"]
    assert "leave decoder.rtol and decoder.atol out" in capsys.readouterr().err
    with pytest.raises(gorl.InputError, match=r"leave decoder\.rtol and decoder\.atol out"):
        export(policy, tmp_path / "policy.onnx", "latent")
    assert names(tmp_path) == ["policy.stablehlo"]


# --- What is refused before anything is computed ---


@pytest.mark.parametrize(
    ("name", "draw", "sentence"),
    [
        ("policy.pt", "latent", r"policy\.pt must end in one of \.stablehlo, \.onnx, or have no suffix"),
        ("missing/policy", "latent", "cannot be written: give a file in a directory that exists and is writable"),
        ("file/policy", "latent", "cannot be written"),
        ("directory", "latent", "directory is a directory: give a file"),
        ("directory.onnx", "latent", "is a directory: give a file"),
        ("half", "latent", r"half\.onnx is a directory: give a file"),
        ("policy", "seeds", "no draw is called 'seeds': did you mean 'seed'"),
        ("policy.onnx", "noise", "no draw is called 'noise'"),
        ("policy.onnx", "seed", r"an \.onnx takes latents only: leave out --draw seed, or make a \.stablehlo"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    make_policy, refuse_to_compute, tmp_path, name, draw, sentence
):
    for directory in ("directory", "directory.onnx", "half.onnx"):
        (tmp_path / directory).mkdir()
    (tmp_path / "file").touch()
    before = names(tmp_path)
    with pytest.raises(gorl.InputError, match=sentence):
        check_export(tmp_path / name, draw)
    with pytest.raises(gorl.InputError, match=sentence):
        export(make_policy(3, 2, plain=True), tmp_path / name, draw)
    assert names(tmp_path) == before


def test_without_onnx_an_onnx_is_refused_before_anything_is_computed(
    make_policy, refuse_to_compute, without_onnx, tmp_path
):
    with pytest.raises(gorl.InputError, match=r"pip install 'gorl\[onnx\]', or make a \.stablehlo"):
        export(make_policy(3, 2, plain=True), tmp_path / "policy.onnx", "latent")


def test_several_policies_leave_no_file(make_policy, tmp_path):
    several = jax.tree.map(lambda leaf: leaf[None], make_policy(3, 2, plain=True))
    with pytest.raises(gorl.InputError, match="and one is needed"):
        export(several, tmp_path / "policy", "latent")
    assert names(tmp_path) == []


# --- Any output ---


def test_an_output_that_can_be_written_passes_with_its_suffix(tmp_path):
    assert check_output(tmp_path / "curve.PNG", (".png", ".pdf")) == ".png"
    assert check_output(pathlib.Path("curve.pdf"), (".png", ".pdf")) == ".pdf"  # in the current directory
    assert check_output(tmp_path / "policy", (".png", "")) == ""
    assert names(tmp_path) == []


def test_a_suffix_is_asked_for_where_there_has_to_be_one(tmp_path):
    with pytest.raises(gorl.InputError, match=r"policy must end in one of \.png, \.pdf\.$"):
        check_output(tmp_path / "policy", (".png", ".pdf"))


def test_an_unwritable_directory_is_refused(tmp_path, monkeypatch):
    # Permissions do not bind root, who runs the tests in many containers: answer as the system would.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(gorl.InputError, match="cannot be written"):
        check_output(tmp_path / "curve.png", (".png",))


# --- What a controller has to know ---


class Arm(gorl.MujocoEnv):
    def __init__(self):
        joints = [f'<joint name="{name}" axis="0 1 0"/>' for name in ("shoulder", "elbow")]
        geom = '<geom type="capsule" fromto="0 0 0 0 0 -.3" size=".02"/>'
        bodies = f'<body>{joints[0]}{geom}<body pos="0 0 -.3">{joints[1]}{geom}</body></body>'
        servo = '<position name="servo" joint="elbow" kp="20" kv="2" ctrllimited="true" ctrlrange="-1 1"/>'
        actuators = f'<actuator>{servo}<motor name="motor" joint="shoulder"/></actuator>'
        model = f"<mujoco><worldbody>{bodies}</worldbody>{actuators}</mujoco>"
        commands = {"forward": gorl.Command(-1.0, 2.0, "m/s")}
        super().__init__(model, control_timestep=0.02, commands=commands, pose=(0.5, 0.0), action_scale=0.3)

    def start(self, data, key):
        return data

    def observe(self, data):
        return {"state": jnp.concatenate([data.qpos, self.command(data)]), "privileged_state": data.qvel}

    def reward(self, data, action):
        return data.qpos[0]


def test_an_onnx_says_what_a_controller_has_to_know(make_policy, tmp_path, capsys):
    env = gorl.EnvConfig(Arm(), action_repeat=2)
    export(make_policy(3, 2, plain=True), tmp_path / "policy.onnx", "latent", env, is_compared=True)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    told = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert told == {
        "task": "Arm",
        "observation_part": "state",
        "observation_size": 3,
        "action_size": 2,
        "control_timestep": 0.04,
        "actuators": ["servo", "motor"],
        "joints": ["elbow", "shoulder"],
        "control_range": [[-1.0, 1.0], None],
        "kp": [20.0, 0.0],
        "kd": [2.0, 0.0],
        "pose": [0.5, 0.0],
        "action_scale": 0.3,
        "commands": {"forward": [-1.0, 2.0, "m/s"]},
    }
    *_, compared = capsys.readouterr().out.splitlines()
    error = float(re.search(r"actions differ by at most (\S+);", compared)[1])
    assert 0 <= error < 1e-5
    assert re.search(r"one action takes [\d,]+ µs \(median\), [\d,]+ µs \(99 %\) on one core", compared)


def test_an_environment_that_is_not_there_is_left_out_of_the_metadata(make_policy, tmp_path, capsys):
    export(make_policy(3, 2, plain=True), tmp_path / "policy.onnx", "latent", gorl.EnvConfig("nowhere:Robot"))
    assert "the environment is left out of the file's metadata: " in capsys.readouterr().err
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {}


def test_a_comparison_takes_onnxruntime(make_policy, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(gorl.InputError, match="--check needs onnxruntime, which is not installed: pip"):
        export(make_policy(3, 2, plain=True), tmp_path / "policy.onnx", "latent", is_compared=True)
    assert not names(tmp_path)
