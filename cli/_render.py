"""`gorl render`: films of policies as files."""

import contextlib
import io
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import PIL.Image
import rich.markup
import rich.progress
from jaxtyping import UInt8

import gorl

from ._process import check_output, plain_console, write_output
from ._run import say_placeholders

# The largest frame rate of each kind of file. Browsers slow down a GIF with many more frames per second than 20.
_RATES = {".mp4": 30.0, ".gif": 20.0, ".png": 20.0}
_STRIP = 8  # frames of an episode in a PNG
_PROBE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).render()"


def check_film(path: pathlib.Path) -> None:
    """Checks that [`render`][] can make and write such a file."""
    if check_output(path, _RATES) == ".mp4":
        _ffmpeg()


def render(env: gorl.EnvConfig, policy: gorl.Policy, key: int, path: pathlib.Path, **options: Any) -> None:
    """Makes a film of a policy, writes it to a file and prints what it shows. Call [`choose_gl`][] before.

    **Arguments:**

    - `key`: decides the episodes.
    - `path`: the file: `.mp4`; `.gif`; or `.png` for a row of frames of each episode.

    The others are those of `gorl.render`.
    """
    check_film(path)
    say_placeholders(env)
    suffix = path.suffix.lower()
    console = plain_console()
    with rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"making a film of {rich.markup.escape(str(env))}", total=None)

        def show(num_drawn: int, num_frames: int) -> None:
            progress.update(task, completed=num_drawn, total=num_frames)

        rate = _RATES[suffix]
        film = gorl.render(env, policy, jax.random.key(key), frames_per_second=rate, on_frame=show, **options)
        content = encode(film, suffix)
    write_output(path, content)
    seconds = (film.frames.shape[1] - 1) / film.frames_per_second
    returns = ", ".join(f"{of_episode:.1f}" for of_episode in film.returns)
    console.print(
        f"{path}, {len(content) / 1000:,.0f} kB: {seconds:.1f} s of {env} at {film.frames_per_second:.3g} frames per "
        f"second, return{'s' * (len(film.returns) > 1)} {returns}",
        soft_wrap=True,
    )


def choose_gl() -> None:
    """Chooses the OpenGL that MuJoCo draws with. MuJoCo must not have been imported, since it looks only then.

    On Linux it is EGL, or OSMesa if EGL does not work. Each is tried in another process, because MuJoCo cannot be
    imported twice.
    """
    if sys.platform != "linux":
        return  # MuJoCo finds the OpenGL of other systems by itself
    given = os.environ.get("MUJOCO_GL")
    if given:
        if not can_draw(given):
            raise gorl.InputError(f"MuJoCo cannot draw here with MUJOCO_GL={given}: unset that environment variable.")
        return
    for name in ("egl", "osmesa"):
        if can_draw(name):
            os.environ["MUJOCO_GL"] = name
            return
    raise gorl.InputError(
        "MuJoCo finds nothing to draw with on this machine: install EGL (in Debian, apt install libegl1 "
        "libgl1-mesa-dri) or OSMesa (apt install libosmesa6)."
    )


def choose_gl_if_any() -> None:
    """As [`choose_gl`][], for a command that does without a film where nothing can draw."""
    with contextlib.suppress(gorl.InputError):  # whoever draws says it again
        choose_gl()


def can_draw(name: str) -> bool:
    """Whether MuJoCo draws with `MUJOCO_GL=name`. Another process tries it."""
    command = [sys.executable, "-c", _PROBE]
    return subprocess.run(command, env=os.environ | {"MUJOCO_GL": name}, capture_output=True).returncode == 0


def encode(film: gorl.Film, suffix: str) -> bytes:
    """The content of a file with a film. Its episodes are side by side; in a `.png` each is a row of frames."""
    return {".mp4": _mp4, ".gif": _gif, ".png": _png}[suffix](film)


def _ffmpeg() -> str:
    """The path of ffmpeg."""
    if (found := shutil.which("ffmpeg")) is not None:
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise gorl.InputError(
            "an .mp4 needs ffmpeg, which is not installed: apt install ffmpeg (in Debian), or pip install "
            "'gorl[video]', or make a .gif."
        ) from error


def _png(film: gorl.Film) -> bytes:
    chosen = [
        frames[np.linspace(0, count - 1, _STRIP).round().astype(int)]
        for frames, count in zip(film.frames, film.num_frames, strict=True)
    ]
    picture = io.BytesIO()
    PIL.Image.fromarray(_grid(np.concatenate(chosen), columns=_STRIP)).save(picture, format="png", optimize=True)
    return picture.getvalue()


def _gif(film: gorl.Film) -> bytes:
    # All frames share one palette and are not dithered, so that a still background is still and compresses well.
    # The palette covers all colours, not the frequent ones, because the most important things are often small.
    sample = film.frames[:, np.linspace(0, film.frames.shape[1] - 1, 16).round().astype(int)]
    palette = PIL.Image.fromarray(sample.reshape(-1, *sample.shape[3:])).quantize(
        256, method=PIL.Image.Quantize.MAXCOVERAGE
    )
    first, *others = (
        PIL.Image.fromarray(frame).quantize(palette=palette, dither=PIL.Image.Dither.NONE) for frame in _frames(film)
    )
    picture = io.BytesIO()
    milliseconds = 10 * round(100 / film.frames_per_second)  # a GIF counts in hundredths of a second
    first.save(picture, format="gif", save_all=True, append_images=others, duration=milliseconds, loop=0)
    return picture.getvalue()


def _mp4(film: gorl.Film) -> bytes:
    height, width, _ = next(_frames(film)).shape
    # Browsers play yuv420p only. It has one colour for each block of two by two pixels, so sizes must be even.
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"
    # An .mp4 cannot be written to a pipe: browsers want its index first, which is known last.
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "film.mp4"
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{film.frames_per_second:.6f}"]
        encoded = ["-vf", even, "-c:v", "h264", "-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart"]
        command = [_ffmpeg(), "-v", "error", *raw, "-i", "-", *encoded, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # ffmpeg has ended, and says why below
                for frame in _frames(film):
                    process.stdin.write(frame.tobytes())
            _, complaint = process.communicate()
        if process.returncode != 0:
            complaint = " ".join(complaint.decode(errors="replace").split())
            raise gorl.InputError(f"ffmpeg makes no .mp4 here, so make a .gif; it says: {complaint}")
        return path.read_bytes()


def _frames(film: gorl.Film) -> Iterator[UInt8[np.ndarray, "full_height full_width 3"]]:
    """The frames of a film with its episodes side by side, one by one, because a film is large."""
    columns = math.ceil(math.sqrt(len(film.frames)))
    for frame in range(film.frames.shape[1]):
        yield _grid(film.frames[:, frame], columns)


def _grid(
    pictures: UInt8[np.ndarray, "cells height width 3"], columns: int
) -> UInt8[np.ndarray, "full_height full_width 3"]:
    """Pictures row by row, with white lines between them and white cells after the last."""
    if len(pictures) == 1:
        return pictures[0]
    rows = -(-len(pictures) // columns)
    missing = rows * columns - len(pictures)
    cells = np.pad(pictures, ((0, missing), (1, 1), (1, 1), (0, 0)), constant_values=255)
    _, height, width, _ = cells.shape
    cells = cells.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return cells.reshape(rows * height, columns * width, 3)
