"""`gorl render`: films as files, and what it says where one cannot be made."""

import io
import os
import re
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest
import render_oracle

import gorl
import gorl_cli._render
from gorl_cli._render import check_film, choose_gl, encode

COLOURS = np.array([[200, 40, 40], [40, 160, 60], [50, 60, 200], [220, 200, 60], [160, 60, 180]], np.uint8)


def colour_film(num_episodes=1, num_frames=12, height=24, width=32, frames_per_second=25.0):
    """Each episode in a colour of its own, and a white bar that moves a pixel to the right with each frame."""
    frames = np.empty((num_episodes, num_frames, height, width, 3), np.uint8)
    frames[:] = COLOURS[:num_episodes, None, None, None]
    for frame in range(num_frames):
        frames[:, frame, :, 2 * frame : 2 * frame + 2] = 255
    return gorl.Film(frames, np.full(num_episodes, num_frames), frames_per_second, np.zeros(num_episodes, np.float32))


@pytest.fixture
def refuse_to_compute(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing was to be computed")

    monkeypatch.setattr(gorl, "render", refuse)


@pytest.fixture
def without_ffmpeg(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # an import of it fails


@pytest.fixture
def fake_ffmpeg(monkeypatch, tmp_path):
    """Puts a program of a few lines where the system's ffmpeg would be."""

    def put(script):
        directory = tmp_path / "bin"
        directory.mkdir()
        (directory / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
        (directory / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    return put


# --- Files ---


def read_video(content, path):
    """The frames of a video, the frames per second that it asks for, and what ffmpeg says of it."""
    path.write_bytes(content)
    command = [gorl_cli._render._ffmpeg(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    description = next(line for line in done.stderr.decode().splitlines() if "Video: " in line)
    width, height = map(int, re.search(r" (\d+)x(\d+)[ ,]", description).groups())
    rate = float(re.search(r" ([\d.]+) fps", description).group(1))
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3), rate, description


def test_an_mp4_holds_every_frame_at_its_rate(tmp_path):
    film = colour_film()
    video, rate, _ = read_video(encode(film, ".mp4"), tmp_path / "film.mp4")
    assert video.shape == (12, 24, 32, 3)
    assert rate == 25
    # Colours are halved in resolution, and compressed.
    assert np.abs(video.astype(int) - film.frames[0]).mean() < 10
    assert all(np.argmax(picture[12].sum(axis=1)) // 2 == frame for frame, picture in enumerate(video))


def test_an_mp4_plays_in_browsers(tmp_path):
    content = encode(colour_film(), ".mp4")
    _, _, description = read_video(content, tmp_path / "film.mp4")
    assert "h264" in description
    assert "yuv420p" in description
    assert content.index(b"moov") < content.index(b"mdat")  # the index first, so that it plays while it loads


@pytest.mark.parametrize(("height", "width"), [(25, 32), (24, 33), (25, 33)])
def test_a_frame_of_odd_size_gets_another_row_or_column(tmp_path, height, width):
    video, _, _ = read_video(encode(colour_film(height=height, width=width), ".mp4"), tmp_path / "film.mp4")
    assert video.shape == (12, height + height % 2, width + width % 2, 3)


@pytest.mark.parametrize("rate", [1 / 0.06, 1 / 0.024, 10.0])
def test_the_rate_need_not_be_whole(tmp_path, rate):
    video, read_rate, _ = read_video(encode(colour_film(frames_per_second=rate), ".mp4"), tmp_path / "film.mp4")
    assert read_rate == pytest.approx(rate, abs=0.01)
    assert len(video) == 12


def read_gif(content):
    """The frames of a GIF, and how many milliseconds each of them stays."""
    with PIL.Image.open(io.BytesIO(content)) as picture:
        frames, durations = [], []
        for index in range(picture.n_frames):
            picture.seek(index)
            frames.append(np.asarray(picture.convert("RGB")))
            durations.append(picture.info["duration"])
        return np.stack(frames), durations, picture.info["loop"]


def test_a_gif_holds_every_frame_for_its_time_and_loops():
    film = colour_film(frames_per_second=20.0)
    frames, durations, loop = read_gif(encode(film, ".gif"))
    np.testing.assert_array_equal(frames, film.frames[0])
    assert durations == [50] * 12
    assert loop == 0  # for ever


def test_a_gif_takes_the_nearest_hundredth_of_a_second():
    assert read_gif(encode(colour_film(frames_per_second=1 / 0.048), ".gif"))[1] == [50] * 12


def test_a_gif_lasts_as_long_as_its_film_where_frames_are_alike():
    film = colour_film(frames_per_second=20.0)
    film.frames[:, 4:] = film.frames[:, 4:5]
    frames, durations, _ = read_gif(encode(film, ".gif"))
    assert sum(durations) == 12 * 50
    np.testing.assert_array_equal(frames[-1], film.frames[0, -1])


def test_a_gif_keeps_colours_near_and_most_of_all_those_of_something_small():
    film = colour_film(height=64, width=64)
    smooth = np.linspace(0, 1, 64)
    film.frames[..., 0] = 20 + 16 * smooth
    film.frames[..., 1] = 50 + 32 * smooth[:, None]
    film.frames[..., 2] = 90 + 51 * smooth
    shade = 1 - 0.05 * np.indices((5, 5)).sum(axis=0)[..., None]
    film.frames[..., 20:25, 20:25, :] = shade * [255, 160, 0]
    film.frames[..., 40:45, 40:45, :] = shade * [255, 100, 100]
    frames, _, _ = read_gif(encode(film, ".gif"))
    difference = np.abs(frames.astype(int) - film.frames[0])
    assert difference.mean() < 3
    assert difference[:, 20:25, 20:25].max() < 12
    assert difference[:, 40:45, 40:45].max() < 12


@pytest.mark.parametrize(("num_episodes", "rows", "columns"), [(2, 1, 2), (3, 2, 2), (4, 2, 2), (5, 2, 3)])
def test_episodes_are_side_by_side_in_a_grid(num_episodes, rows, columns):
    film = colour_film(num_episodes, frames_per_second=20.0)
    frames, _, _ = read_gif(encode(film, ".gif"))
    assert frames.shape == (12, rows * 26, columns * 34, 3)
    cells = [frames[:, 26 * row :, 34 * column :][:, :26, :34] for row in range(rows) for column in range(columns)]
    for cell, episode in zip(cells, film.frames, strict=False):
        np.testing.assert_array_equal(cell[:, 1:-1, 1:-1], episode)
        assert (cell[:, [0, -1]] == 255).all()
        assert (cell[:, :, [0, -1]] == 255).all()
    for cell in cells[num_episodes:]:
        assert (cell == 255).all()


def test_a_png_has_a_row_for_each_episode_with_frames_from_its_beginning_to_its_end():
    film = colour_film(2, num_frames=15)
    film.num_frames[1] = 8
    strip = np.asarray(PIL.Image.open(io.BytesIO(encode(film, ".png"))))
    assert strip.shape == (2 * 26, 8 * 34, 3)
    for row, times in enumerate([range(0, 15, 2), range(8)]):
        for column, time in enumerate(times):
            cell = strip[26 * row + 1 :, 34 * column + 1 :][:24, :32]
            np.testing.assert_array_equal(cell, film.frames[row, time])


# --- The command ---


def test_a_film_is_written_and_what_it_shows_is_said(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys, jax, gorl\n"
        "del __import__('os').environ['MUJOCO_GL']\n"
        "from gorl_cli._render import choose_gl, render\n"
        "assert 'mujoco' not in sys.modules\n"
        "choose_gl()\n"
        "learner = gorl.PPO(policy_width=8, policy_depth=1, value_width=1, value_depth=1)\n"
        "encoder = learner.encoder(learner.init(2, 2, jax.random.key(0)))\n"
        "policy = gorl.Policy(encoder, gorl.IdentityDecoder(), 2, 2)\n"
        "config = gorl.EnvConfig('MultiGoal', episode_length=20)\n"
        "for suffix in ('.mp4', '.gif', '.png'):\n"
        "    path = pathlib.Path(sys.argv[1]) / f'film{suffix}'\n"
        "    render(config, policy, 0, path, num_episodes=2, height=48, width=64)\n"
    )
    output = render_oracle.drawing_process(script, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.gif", "film.mp4", "film.png", "script.py"]
    for suffix, line in zip((".mp4", ".gif", ".png"), output.splitlines(), strict=True):
        said = (
            rf"{tmp_path}/film\{suffix}, [\d,]+ kB: 2\.0 s of MultiGoal at 10 frames per second, returns [\d.]+, [\d.]+"
        )
        assert re.fullmatch(said, line)
    video, rate, _ = read_video((tmp_path / "film.mp4").read_bytes(), tmp_path / "film.mp4")
    assert video.shape == (21, 50, 132, 3)
    assert rate == 10
    assert sum(read_gif((tmp_path / "film.gif").read_bytes())[1]) == 2100
    assert PIL.Image.open(tmp_path / "film.png").size == (8 * 66, 2 * 50)


@pytest.mark.parametrize(("suffix", "frames_per_second"), [(".mp4", 30.0), (".gif", 20.0), (".png", 20.0)])
def test_the_options_reach_the_library(make_policy, monkeypatch, tmp_path, capsys, suffix, frames_per_second):
    given = {}

    def render(env, policy, key, *, on_frame, **options):
        on_frame(1, 2)
        given.update(options, key=key)
        return colour_film()

    monkeypatch.setattr(gorl, "render", render)
    options = {
        "num_episodes": 3,
        "stochastic": True,
        "num_steps": 7,
        "height": 24,
        "width": 32,
        "camera": "side",
    }
    path = tmp_path / f"film{suffix}"
    gorl_cli._render.render(gorl.EnvConfig("MultiGoal"), make_policy(2, 2), 5, path, **options)
    assert given == options | {"frames_per_second": frames_per_second, "key": jax.random.key(5)}
    assert path.read_bytes() == encode(colour_film(), suffix)
    assert str(path) in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("film.avi", r"film\.avi must end in one of \.mp4, \.gif, \.png"),
        ("film", "must end in one of"),
        ("missing/film.gif", "cannot be written: give a file in a directory that exists and is writable"),
        ("directory.gif", "is a directory: give a file"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_is_computed(
    make_policy, refuse_to_compute, tmp_path, name, sentence
):
    (tmp_path / "directory.gif").mkdir()
    with pytest.raises(gorl.InputError, match=sentence):
        gorl_cli._render.render(gorl.EnvConfig("MultiGoal"), make_policy(2, 2), 0, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["directory.gif"]


# --- ffmpeg ---


def test_without_ffmpeg_an_mp4_is_refused_before_anything_is_computed(
    make_policy, refuse_to_compute, without_ffmpeg, tmp_path
):
    path = tmp_path / "film.mp4"
    with pytest.raises(gorl.InputError, match=r"apt install ffmpeg .*pip install 'gorl\[video\]', or make a \.gif"):
        gorl_cli._render.render(gorl.EnvConfig("MultiGoal"), make_policy(2, 2), 0, path)
    assert not path.exists()


@pytest.mark.parametrize("suffix", [".gif", ".png", ".GIF"])
def test_the_others_take_no_ffmpeg(without_ffmpeg, tmp_path, suffix):
    check_film(tmp_path / f"film{suffix}")
    assert encode(colour_film(), suffix.lower())


def test_the_systems_ffmpeg_is_taken_first_and_its_failure_is_told(fake_ffmpeg):
    fake_ffmpeg("cat > /dev/null; echo 'no such encoder' >&2; exit 1")
    with pytest.raises(gorl.InputError, match="no such encoder"):
        encode(colour_film(), ".mp4")


def test_an_ffmpeg_that_does_not_listen_is_told(fake_ffmpeg):
    fake_ffmpeg("exit 1")
    with pytest.raises(gorl.InputError, match=r"ffmpeg makes no \.mp4"):
        encode(colour_film(height=480, width=640), ".mp4")


# --- What MuJoCo draws with ---


@pytest.fixture
def machine(monkeypatch):
    """A Linux machine on which only some ways of drawing work. Lists which were tried."""

    def make(*working, platform="linux"):
        tried = []
        monkeypatch.setattr(gorl_cli._render, "can_draw", lambda name: tried.append(name) or name in working)
        monkeypatch.setattr(sys, "platform", platform)
        return tried

    monkeypatch.setenv("MUJOCO_GL", "")  # so that what is set here is taken back
    monkeypatch.delenv("MUJOCO_GL")
    return make


@pytest.mark.parametrize(
    ("working", "tried", "chosen"),
    [
        (["egl", "osmesa"], ["egl"], "egl"),
        (["osmesa"], ["egl", "osmesa"], "osmesa"),
    ],
)
def test_egl_is_chosen_or_else_osmesa(machine, working, tried, chosen):
    seen = machine(*working)
    choose_gl()
    assert seen == tried
    assert os.environ["MUJOCO_GL"] == chosen


def test_a_machine_with_neither_is_told_what_to_install(machine):
    machine()
    with pytest.raises(
        gorl.InputError, match=r"apt install libegl1 libgl1-mesa-dri\) or OSMesa \(apt install libosmesa6"
    ):
        choose_gl()
    assert "MUJOCO_GL" not in os.environ


def test_what_the_user_has_chosen_stays(machine, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    seen = machine("egl", "osmesa")
    choose_gl()
    assert seen == ["osmesa"]
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_what_the_user_has_chosen_and_does_not_work_is_told(machine, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    machine("egl")
    with pytest.raises(gorl.InputError, match="MUJOCO_GL=glfw: unset that environment variable"):
        choose_gl()


def test_other_systems_are_left_alone(machine):
    seen = machine(platform="darwin")
    choose_gl()
    assert seen == []
    assert "MUJOCO_GL" not in os.environ


def test_what_cannot_draw_is_found_out():
    assert not gorl_cli._render.can_draw("disable")
    assert not gorl_cli._render.can_draw("no such thing")
