"""`gorl view`: an episode in the browser, live."""

import contextlib
import errno
import html
import io
import math
import pathlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import gorl

from ._player import Clock, Player
from ._process import Stop, check_packages, say
from ._run import RUN, SWEEP, Run, say_placeholders

if TYPE_CHECKING:
    import viser

PACKAGES = ("viser", "mjviser")
ACTIONS = ("random", "zero")
_PORTS = 100  # how many ports are tried
_FRAMES = 60.0  # drawn in a second at most
_SPEEDS = {"1/10": 0.1, "1/4": 0.25, "1/2": 0.5, "1": 1.0, "2": 2.0, "4": 4.0}
_SIDES = ("Left", "Right", "Away", "Nearer")
_SIDE_KEYS: tuple[Any, ...] = ("J", "L", "I", "K")  # free of those that move viser's camera
_FIELD_OF_VIEW = 60.0  # mjviser's, in degrees
_INTENSITY = 0.8  # mjviser's, of the light from around
_SMALL = 4.0  # planes up to so many extents of a model
_COLLISIONS = 3  # the group in which models keep them, by MuJoCo's custom
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def view(
    target: str,
    *,
    host: str,
    port: int,
    seed: int | None,
    stochastic: bool,
    actions: str | None,
    key: int,
    commands: Sequence[str] | None,
) -> None:
    """Shows an episode in the browser until Ctrl-C.

    **Arguments:**

    - `target`: the directory of a run, whose best policies act; or an environment.
    - `host`, `port`: where the page is. If the port is taken it is the next one that is not.
    - `seed`, `stochastic`: which policy acts first, and whether latents are drawn; for a run.
    - `actions`: one of `ACTIONS`; for an environment.
    - `key`: decides the episodes.
    - `commands`: `NAME=VALUE` of commands of the task that are fixed.
    """
    check_packages("gorl view", "view", PACKAGES)
    run = open_target(target)
    if run is None and (seed is not None or stochastic):
        given = "--seed" if seed is not None else "--stochastic"
        raise gorl.InputError(f"{given} is about a policy, and {target} is an environment: leave it out.")
    if run is not None and actions is not None:
        raise gorl.InputError(
            "--actions is for an environment, and the actions of a run are its policy's: leave it out."
        )
    if actions not in (None, *ACTIONS):
        raise gorl.internal.unknown_name("kind of actions", actions or "", ACTIONS)
    free = free_port(host, port)
    env = gorl.preset(target).env if run is None else run.config.env
    if commands:
        env = gorl.replace(env, {"commands": " ".join(commands)})
    loaded = gorl.load_environment(env)
    gorl.internal.scene(loaded.env.whole)  # one without a model is refused before a policy is loaded
    say_placeholders(env)
    policies, index = None, 0
    if run is not None:
        index = run.index(run.best_seed() if seed is None else seed)
        policies = run.policies()
        gorl.internal.load_for(env, gorl.of_seed(policies, index))
    spread = float(stochastic if run is not None else actions != "zero")
    player = Player(loaded, policies, seed=index, key=key, spread=spread)
    if host not in _LOOPBACK:
        say(f"whoever reaches {host} over the network can watch, and use the controls")
    seeds = [] if run is None else list(run.seed_numbers)
    collisions = bool(gorl.placeholder_meshes(loaded))
    viewer = Viewer(player, str(env), seeds, host, free, collisions=collisions)
    if viewer.port != port:
        say(f"port {port} is taken, so this is port {viewer.port}")
    with contextlib.closing(viewer), Stop("the viewer ends") as stop:
        stop.heed()  # before anybody is told how to end it
        print(f"{viewer.url}  (Ctrl-C ends it)", flush=True)
        viewer.run(lambda: stop.exit_code is not None)


def open_target(target: str) -> Run | None:
    """The run in a directory; `None` for the name of an environment."""
    path = pathlib.Path(target)
    is_name = ":" in target or target in gorl.environments()
    if any((path / name).exists() for name in (RUN, SWEEP)) or (path.is_dir() and not is_name):
        return Run.open(path)
    if not is_name and len(path.parts) > 1 and path.parts[0] != "brax":
        raise gorl.InputError(
            f"{target} is neither a directory nor an environment: give the directory of a run of gorl train, or a "
            "name of gorl envs."
        )
    return None


def free_port(host: str, port: int) -> int:
    """The first port from `port` on that nothing listens on.

    **Raises:**

    `gorl.InputError` for a host that is no address of this machine, and where no port is free.
    """
    if not 0 < port < 65536:
        raise gorl.InputError(f"--port {port} is no port: choose 1024 to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise _no_address(host) from error
    for candidate in range(port, min(port + _PORTS, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as trying:
            trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                trying.bind((address[0], candidate, *address[2:]))
                return candidate
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise _no_address(host) from error
                if error.errno == errno.EACCES:
                    raise gorl.InputError(f"--port {candidate} is for the system: choose 1024 to 65535.") from error
    raise gorl.InputError(f"port {port} and the {_PORTS} after it are taken: give another by --port.")


def _no_address(host: str) -> gorl.InputError:
    return gorl.InputError(
        f"--host {host} is no address of this machine: leave it out, or give 0.0.0.0 to show the page to the network."
    )


class Viewer:
    """A page on which a player can be watched and controlled.

    **Arguments:**

    - `player`: what is shown. Only the thread in [`run`][] uses it.
    - `name`: the environment's.
    - `seeds`: the numbers of the seeds whose policies act; none without policies.
    - `host`, `port`: where the page is.
    - `collisions`: show what collides as well, as where meshes are missing.

    **Attributes:**

    - `port`, `url`: where the page is.
    - `is_paused`: whether the episode waits.
    - `num_frames`: frames drawn so far.
    """

    def __init__(
        self, player: Player, name: str, seeds: Sequence[int], host: str, port: int, *, collisions: bool = False
    ):
        import copy

        import mjviser
        import viser

        self._player, self._seeds, self._name = player, seeds, name
        self.is_paused, self.num_frames = False, 0
        self._starts_again = True
        self._clock = Clock(player.seconds, time.perf_counter())
        # Callbacks run in threads of the server. They ask here, and the thread that plays does it.
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a panel
            self._server = viser.ViserServer(host, port, label=f"gorl view: {name}", verbose=False)
        shown = f"[{host}]" if ":" in host else host
        self.port = self._server.get_port()
        self.url = f"http://{shown}:{self.port}"
        # Its button would send the page through a server of somebody else's.
        self._server.request_share_url = lambda *_, **__: None
        self._colour(is_dark=False)
        self._server.gui.main_panel.dock_right()  # rather than in front of the robot
        # A copy, since it changes how the model looks.
        self._scene = mjviser.ViserMujocoScene(self._server, with_floors(copy.copy(player.model)), 1)
        # The robot stays in the middle if it can run away. Others stay where they are.
        self._scene.camera_tracking_enabled = gorl.internal.runaway(player.model) is not None
        if collisions:
            self._scene.geom_groups_visible[_COLLISIONS] = True
            self._scene.rebuild_visual_handles()
        self._is_stale = True
        self._scene.set_refresh_handler(lambda: self._ask(self._touch))
        self._add_controls()
        self._add_pulling()

    def run(self, is_over: Callable[[], bool]) -> None:
        """Plays until `is_over()`. While nobody looks, the episode waits."""
        next_frame = next_status = frames_since = 0.0
        num_before, rate = 0, 0.0
        while not is_over():
            while not self._asked.empty():
                self._asked.get()()
            now = time.perf_counter()
            if self.is_paused or not self.is_watched:
                self._clock.rest(now)
                pause = 0.02
            else:
                self._act(now)
                pause = min(self._clock.wait(), 0.02)
            now = time.perf_counter()
            if self._is_stale and now >= next_frame:
                next_frame = max(next_frame + 1 / _FRAMES, now)
                self._draw()
            if now >= next_status:
                next_status = now + 0.25
                if now - frames_since >= 1.0:
                    rate = (self.num_frames - num_before) / (now - frames_since)
                    frames_since, num_before = now, self.num_frames
                self._status.content = self._said(rate)
            time.sleep(pause)

    @property
    def is_watched(self) -> bool:
        """Whether a browser shows the page."""
        return bool(self._server.get_clients())

    def light(self, *, is_plain: bool) -> None:
        """Lights the scene with or without shadows and reflections."""
        scene = self._server.scene
        scene.configure_default_lights(cast_shadow=not is_plain)
        if is_plain:
            scene.configure_environment_map(None)
        else:
            scene.configure_environment_map(environment_intensity=_INTENSITY)

    def close(self) -> None:
        """Closes the page."""
        # With a browser that shows the page it takes five seconds, which nobody has to wait for.
        stopping = threading.Thread(target=self._server.stop, daemon=True)
        with contextlib.redirect_stdout(io.StringIO()):
            stopping.start()
            stopping.join(1.0)

    # --- What the thread that plays does. ---

    def _act(self, now: float) -> None:
        """Takes the actions that are due, and no more than leave time for drawing."""
        until = now + 1 / 30
        while self._clock.is_due(now) and now < until:
            self._step()
            self._clock.acted()
            if self.is_paused:
                return
            now = time.perf_counter()

    def _step(self) -> None:
        if self._player.is_over:
            self._player.restart()
        else:
            self._player.step()
            if self._player.is_over and not self._starts_again:
                self._pause(True)
        self._touch()

    def _touch(self) -> None:
        self._is_stale = True

    def _draw(self) -> None:
        self._is_stale = False
        self._scene.update_from_mjdata(self._player.data)
        self.num_frames += 1

    def _said(self, rate: float) -> str:
        player = self._player
        rows = {
            "Episode": f"{player.episode + 1}{', over' * player.is_over}",
            "Time": f"{player.num_steps * player.seconds:.2f} s",
            "Return so far": f"{player.total:.1f}",
            "Return of the last episode": "" if player.last_return is None else f"{player.last_return:.1f}",
            "Real-time factor": "paused" if self.is_paused else f"{self._clock.factor:.2f}",
            "Frames per second": f"{rate:.0f}",
        }
        cells = "".join(
            f'<tr><td style="padding-right:1em">{html.escape(name)}</td><td>{html.escape(value)}</td></tr>'
            for name, value in rows.items()
        )
        return f'<table id="gorl-status" style="font-size:.85em;margin:0 1em .5em">{cells}</table>'

    def _pause(self, is_paused: bool) -> None:
        self.is_paused = is_paused
        self._play_button.label = "Play" if is_paused else "Pause"

    def _step_once(self) -> None:
        self._pause(True)
        self._step()

    def _restart(self) -> None:
        self._player.restart()
        self._touch()

    # --- Controls. ---

    def _colour(self, *, is_dark: bool) -> None:
        self._server.gui.configure_theme(dark_mode=is_dark, show_share_button=False, show_logo=False)

    def _ask(self, what: Callable[..., None], *arguments: Any) -> None:
        self._asked.put(lambda: what(*arguments))

    def _add_controls(self) -> None:
        gui = self._server.gui
        tabs = gui.add_tab_group()
        with tabs.add_tab("Play"):
            self._status = gui.add_html(self._said(0.0))
            self._add_playing(gui)
            self._add_acting(gui)
            if self._player.num_bodies:
                self._add_pushing(gui)
            if self._player.commands:
                self._add_commands(gui)
        with tabs.add_tab("Camera"):
            dark = gui.add_checkbox("Dark page", False)
            dark.on_update(lambda _: self._colour(is_dark=dark.value))
            plain = gui.add_checkbox("Plain light", False, hint="Faster where no GPU draws the page.")
            plain.on_update(lambda _: self.light(is_plain=plain.value))
            self._scene.create_scene_gui(**_camera(self._player))
        with tabs.add_tab("Show"):
            self._scene.create_overlay_gui()
        with tabs.add_tab("Groups"):
            self._scene.create_groups_gui()

    def _add_playing(self, gui: "viser.GuiApi") -> None:
        self._play_button = gui.add_button("Pause", hint="Space")
        others = gui.add_button_group(
            "Episode", ("Step", "Reset"), hint="Take one action (N), or begin the next episode (R)."
        )
        keys: tuple[Any, ...] = ("space", "N", "R")
        actions = {"Pause": lambda: self._pause(not self.is_paused), "Step": self._step_once, "Reset": self._restart}
        self._play_button.on_click(lambda _: self._ask(actions["Pause"]))
        others.on_click(lambda event: self._ask(actions[event.target.value]))
        for key, (label, action) in zip(keys, actions.items(), strict=True):
            gui.add_command(label, hotkey=key).on_trigger(lambda _, action=action: self._ask(action))
        speed = gui.add_dropdown("Speed", tuple(_SPEEDS), initial_value="1", hint="Times real time.")
        speed.on_update(lambda _: self._ask(self._clock.__setattr__, "speed", _SPEEDS[speed.value]))
        again = gui.add_checkbox("Start again at the end", True)
        again.on_update(lambda _: self._ask(self.__setattr__, "_starts_again", again.value))

    def _add_acting(self, gui: "viser.GuiApi") -> None:
        """Who acts, and how much of it is chance."""
        player, is_random = self._player, self._player.spread > 0
        words = ("Latents", "mode", "draws") if self._seeds else ("Actions", "zero", "random")
        with gui.add_folder("Policy" if self._seeds else "Actions"):
            if self._seeds:
                names = {str(number): index for index, number in enumerate(self._seeds)}
                seed = gui.add_dropdown("Seed", tuple(names), initial_value=str(self._seeds[player.seed]))
                seed.on_update(lambda _: self._ask(player.__setattr__, "seed", names[seed.value]))
            kind = gui.add_dropdown(words[0], words[1:], initial_value=words[2] if is_random else words[1])
            spread = gui.add_slider(
                "Spread",
                *(0.0, 3.0 if self._seeds else 1.0, 0.05, 1.0),
                disabled=not is_random,
                hint="Times the standard deviation of the latent." if self._seeds else "The largest size of an action.",
            )

        def change(_: object) -> None:
            spread.disabled = kind.value == words[1]
            self._ask(player.__setattr__, "spread", 0.0 if spread.disabled else float(spread.value))

        kind.on_update(change)
        spread.on_update(change)

    def _add_pushing(self, gui: "viser.GuiApi") -> None:
        model, mass = self._player.model, self._player.mass
        bodies = {model.body(index).name or f"body {index}": index for index in _moving(model)}
        if not bodies or mass <= 0:
            return
        with gui.add_folder("Push"):
            body = gui.add_dropdown("Body", tuple(bodies))
            # It would give the whole robot 1 m/s if that were free.
            usual = float(f"{mass / 0.2:.1g}")
            size = gui.add_slider("Force (N)", 0.0, 5 * usual, usual / 20, usual, hint="For a fifth of a second.")
            sides = gui.add_button_group("Towards", _SIDES, hint="As seen from here; keys J, L, I, K.")
            gui.add_markdown("Ctrl and the left mouse button pull a body.")

        def push(side: str, client: "viser.ClientHandle | None") -> None:
            self._ask(self._player.push, bodies[body.value], size.value * _towards(side, client))

        sides.on_click(lambda event: push(event.target.value, event.client))
        for side, key in zip(_SIDES, _SIDE_KEYS, strict=True):
            command = gui.add_command(f"Push: {side.lower()}", hotkey=key)
            command.on_trigger(lambda event, side=side: push(side, event.client))

    def _add_commands(self, gui: "viser.GuiApi") -> None:
        player = self._player
        with gui.add_folder("Commands"):
            for name, command in player.commands.items():
                low, high = min(command.low, 0.0), max(command.high, 0.0)
                if low == high:
                    continue
                label = f"{name} ({command.unit})" if command.unit else name
                slider = gui.add_slider(label, low, high, (high - low) / 200, 0.0)
                slider.on_update(
                    lambda _, name=name, slider=slider: self._ask(player.fixed.__setitem__, name, float(slider.value))
                )
            free = gui.add_button("As the task draws them")
            free.on_click(lambda _: self._ask(player.fixed.clear))

    def _add_pulling(self) -> None:
        """Ctrl and the mouse pull a body, as in MuJoCo's own viewer."""
        if not self._player.num_bodies:
            return
        for group in self._scene._mesh_groups:  # what has no name of its own in mjviser's interface
            if group.mocap_ids is not None:
                continue

            async def drag(event: Any, bodies: Any = group.body_ids) -> None:
                body = int(bodies[event.instance_index or 0])
                self._ask(self._pull, event.phase, body, event.start_position, event.end_position)

            group.handle.on_drag("left", modifier="cmd/ctrl")(drag)

    def _pull(self, phase: str, body: int, begin: Sequence[float], end: Sequence[float]) -> None:
        offset = self._scene._scene_offset  # what follows the robot is drawn around the origin
        if phase == "start":
            self._player.grab(body, np.asarray(begin) - offset)
        if phase == "end":
            self._player.release()
        else:
            self._player.pull(np.asarray(end) - offset)


def _moving(model: Any) -> list[int]:
    """The bodies that can move, and have a mass."""
    return [index for index in range(model.nbody) if model.body_weldid[index] and model.body_mass[index] > 0]


def _towards(side: str, client: "viser.ClientHandle | None") -> np.ndarray:
    """A horizontal direction as a browser sees it."""
    away = np.array([0.0, 1.0])
    if client is not None:
        seen = (np.asarray(client.camera.look_at) - np.asarray(client.camera.position))[:2]
        if (length := np.linalg.norm(seen)) > 1e-6:
            away = seen / length
    right = np.array([away[1], -away[0]])
    x, y = {"Left": -right, "Right": right, "Away": away, "Nearer": -away}[side]
    return np.array([x, y, 0.0])


def with_floors(model: Any) -> Any:
    """A model whose small planes are thin boxes. mjviser draws every plane as a grid without end."""
    import mujoco

    kinds: Any = mujoco.mjtGeom  # pyright: ignore[reportAttributeAccessIssue]
    thickness = 0.002 * model.stat.extent
    for geom in np.flatnonzero(model.geom_type == kinds.mjGEOM_PLANE):
        width, length, _ = model.geom_size[geom]
        if 0 < width <= _SMALL * model.stat.extent and 0 < length <= _SMALL * model.stat.extent:
            rotation = np.empty(9)
            mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])  # pyright: ignore[reportAttributeAccessIssue]
            model.geom_type[geom] = kinds.mjGEOM_BOX
            model.geom_size[geom, 2] = thickness
            model.geom_pos[geom] -= thickness * rotation.reshape(3, 3)[:, 2]
    return model


def _camera(player: Player) -> dict[str, float]:
    """Where the camera begins: by its distance and its angles in degrees."""
    model, data = player.model, player.data
    root = gorl.internal.runaway(model)
    azimuth, half = float(model.vis.global_.azimuth), math.radians(_FIELD_OF_VIEW / 2)
    if root is not None:
        geoms = model.body_rootid[model.geom_bodyid] == root
        reach = np.linalg.norm(data.geom_xpos[geoms] - data.xpos[root], axis=1) + model.geom_rbound[geoms]
        distance = 1.3 * float(reach.max(initial=0.1)) / math.sin(half)
        return {"camera_distance": distance, "camera_azimuth": azimuth, "camera_elevation": 15.0}
    fixed = np.flatnonzero(model.body_weldid[model.cam_bodyid] == 0)
    if fixed.size == 0:
        return {"camera_distance": 1.5 * float(model.stat.extent), "camera_azimuth": azimuth, "camera_elevation": 30.0}
    # As the first camera of the model sees it.
    camera = int(fixed[0])
    x, y, z = -data.cam_xmat[camera].reshape(3, 3)[:, 2]
    far = np.linalg.norm(data.cam_xpos[camera] - model.stat.center)
    distance = float(far) * math.tan(math.radians(model.cam_fovy[camera]) / 2) / math.tan(half)
    elevation = min(math.degrees(math.asin(min(1.0, -z))), 89.0)  # at 90 the side that is up is unknown
    if math.hypot(x, y) > 1e-3:
        azimuth = math.degrees(math.atan2(y, x))
    return {"camera_distance": distance, "camera_azimuth": azimuth, "camera_elevation": elevation}
