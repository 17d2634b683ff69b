"""Everyday sounds made in code: labelled clips to try Soundmark with where no recording is at hand.

Every sound is a small physical sketch: decaying modes for what is struck (Fletcher & Rossing, *The Physics of
Musical Instruments*, for the partials of a bell), rising tones for bubbles in water (van den Doel,
*Physically Based Models for Liquid Sounds*, 2005), harmonics and pulses for what turns, shaped noise for what
rushes (`soundmark.scene`). The sounds are likenesses, not recordings: a
model that knows them may still fail in the field.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from soundmark.scene import DemoClip, Scene, check, finished


def demo_clips(*, sample_rate: int = 44_100, seconds: float = 5.0, seed: int = 0) -> list[DemoClip]:
    """Return one clip for each demo sound, each label once; the same arguments give the same samples.

    Args:
        sample_rate: 8000 to 96 000 Hz; modes too close to half of it are left out rather than aliased.
        seconds: length of each clip, 1 to 60 s; ``round(seconds * sample_rate)`` samples.
        seed: another seed gives other drops, other rhythms, other pitches of the same sounds.

    Raises:
        ConfigError: an argument is outside its range.
    """
    check(sample_rate, seconds, seed)
    clips = []
    for name, (label, play) in _SOUNDS.items():
        # Seeded by name, so that a sound added to the list leaves the others as they are.
        scene = Scene(
            np.random.default_rng([seed, *name.encode()]), sample_rate, round(seconds * sample_rate)
        )
        play(scene)
        clips.append(DemoClip(name, label, finished(scene.out, sample_rate), sample_rate))
    return clips


def _rain(s: Scene) -> None:
    s.out += 0.5 * s.noise([(100, -30), (600, -12), (2000, -3), (6000, 0), (12000, -6), (20000, -18)])
    for size_hz, per_s, gain in ((2600, 150, 0.4), (5400, 500, 0.3)):
        hits = (s.rng.random(s.n) < per_s / s.rate) * s.rng.exponential(gain, s.n)
        drop = s.burst([(size_hz / 4, -30), (size_hz, 0), (size_hz * 3, -20)], 0.005, attack_s=0.0003)
        s.out += np.convolve(hits, drop, mode="same")


def _siren(s: Scene) -> None:
    sweep = 0.5 - 0.5 * np.cos(2 * np.pi * (s.t / s.rng.uniform(3.4, 4.2) + s.rng.random()))
    s.out += s.voice(600 + 700 * sweep, [1, 0.5, 0.5, 0.25, 0.2, 0.1, 0.08])
    s.room(0.35, 0.7)
    s.out += 0.02 * s.noise([(100, 0), (1000, -12), (8000, -40)])


def _clock_tick(s: Scene) -> None:
    modes = [
        (1150, 0.5, 0.02),
        (2350, 1.0, 0.018),
        (3720, 0.9, 0.014),
        (5210, 0.7, 0.012),
        (7400, 0.5, 0.008),
    ]
    detune = s.rng.uniform(0.9, 1.1)
    for i, at_s in enumerate(s.times(0.25, start_s=s.rng.uniform(0.05, 0.3))):
        pitch = detune * (1.0 if i % 2 else 0.9)  # tick and tock
        for late_s, gain in ((0.0, 0.4), (0.012, 1.0)):  # the lever meets the wheel, then the bank
            snap = s.burst([(150, -24), (900, -8), (3500, 0), (9000, -6), (18000, -16)], 0.006)
            s.add(at_s + late_s, snap, gain)
            s.add(at_s + late_s, s.ring([(hz * pitch, g, f) for hz, g, f in modes]), 3 * gain)
    s.surroundings(-18)


def _church_bells(s: Scene) -> None:
    # hum, prime, tierce (a minor third), quint, nominal, and what lies above: gain and fall time for each.
    partials = [(0.5, 0.5, 9.0), (1.0, 0.6, 6.0), (1.19, 0.8, 5.0), (1.5, 0.4, 3.5), (2.0, 1.0, 4.0)]
    partials += [(2.51, 0.5, 2.2), (3.01, 0.7, 1.8), (4.17, 0.5, 1.2), (5.43, 0.4, 0.8), (6.8, 0.3, 0.5)]
    prime_hz = s.rng.uniform(350, 400)
    for step, every_s in ((1.0, 1.31), (0.885, 1.47)):
        # Each partial is a pair a fraction of a hertz apart: a cast bell is never quite round, so it warbles.
        modes = [(prime_hz * step * r + d, g, f) for r, g, f in partials for d in (0.0, 0.9 * r)]
        bell = s.ring(modes, length_s=4.0)
        for at_s in s.times(every_s, jitter=0.05, start_s=s.rng.uniform(-0.6, 0.5)):
            s.add(at_s, bell, s.rng.uniform(0.7, 1.0))
            s.add(at_s, s.burst([(800, -20), (2500, 0), (9000, -16)], 0.06), 0.7)
    s.room(0.3, 1.5, echoes=60)
    s.surroundings(-15)


def _crickets(s: Scene) -> None:
    for loud, hz in ((1.0, 4400), (0.4, 4750), (0.25, 4900)):
        pitch_hz = hz * s.rng.uniform(0.97, 1.03)
        t = np.arange(round(0.016 * s.rate)) / s.rate
        pulse = np.sin(np.pi * t / 0.016) ** 2 * np.sin(2 * np.pi * min(pitch_hz, 0.44 * s.rate) * t)
        for at_s in s.times(s.rng.uniform(0.36, 0.6), jitter=0.06, start_s=s.rng.uniform(0, 0.3)):
            for k in range(4):
                s.add(at_s + 0.029 * k, pulse, loud * (0.6 + 0.13 * k))
    s.out += 0.02 * s.noise([(200, 0), (2000, -10), (5000, 0), (9000, -20)])


def _car_horn(s: Scene) -> None:
    low_hz = s.rng.uniform(390, 420)
    buzz = [1, 0.9, 1, 0.9, 0.8, 0.7, 0.55, 0.45, 0.35, 0.25, 0.2, 0.15, 0.1, 0.08]
    honks = ((0.0, 0.45), (0.8, 0.4), (1.6, 1.4), (3.6, 0.8))
    for at_s, length_s in ((start_s + o, d) for start_s in s.times(5.0, start_s=0.3) for o, d in honks):
        t = np.arange(round(length_s * s.rate)) / s.rate
        press = np.minimum(1, t / 0.02) * np.minimum(1, t[::-1] / 0.03)
        onset = 1 - 0.03 * np.exp(-t / 0.03)
        for hz in (low_hz, low_hz * 1.24):
            s.add(at_s, press * s.voice(hz * onset, buzz))
    s.room(0.25, 0.5)
    s.out += 0.05 * s.noise([(100, 0), (1000, -12), (8000, -40)])


def _door_wood_knock(s: Scene) -> None:
    panel, every_s = s.rng.uniform(1.3, 1.6), s.rng.uniform(0.19, 0.24)
    for at_s in (start_s + every_s * k for start_s in s.times(2.2, start_s=0.4) for k in range(4)):
        body = s.burst([(60, -3), (200 * panel, 0), (500 * panel, -2), (1200, -12), (4000, -26)], 0.12)
        s.add(at_s, body, s.rng.uniform(0.7, 1.0))
        s.add(at_s, s.burst([(300, -10), (1000, 0), (3000, -6), (9000, -20)], 0.012), 0.4)
    s.room(0.2, 0.3)
    s.surroundings(-40)


def _engine(s: Scene) -> None:
    firing_hz = s.rng.uniform(50, 55) * s.sway(3, 0.99, 1.01)
    # Harmonics of half the firing rate: odd ones weak, there because no two cylinders are alike.
    gains = 0.95 ** np.arange(28) * s.rng.uniform(0.6, 1.2, 28) * np.where(np.arange(28) % 2, 0.5, 0.2)
    gains[1] *= 2
    s.out += s.voice(firing_hz / 2, [float(g) for g in gains])
    load = 0.6 + 0.4 * np.sin(2 * np.pi * np.cumsum(firing_hz) / s.rate)
    s.out += 0.35 * load * s.noise([(40, 0), (150, 0), (500, -5), (1500, -8), (4000, -14), (12000, -26)])


def _helicopter(s: Scene) -> None:
    rotor_hz = s.rng.uniform(11, 13)
    slap = np.exp(3.0 * (np.sin(2 * np.pi * rotor_hz * s.t) - 1))
    s.out += slap * s.noise([(30, 0), (150, 0), (500, -12), (2000, -30)], slow=8)
    s.out += (0.3 * slap + 0.2) * s.noise([(300, 0), (1000, -8), (4000, -24)])
    for at_s in s.times(1 / rotor_hz, jitter=0.01):
        s.add(at_s, s.ring([(45, 1.0, 0.15), (85, 0.9, 0.12), (160, 0.5, 0.08)]), 1.5)
    s.out += 0.1 * s.voice(s.sway(2, 640, 650), [1, 0.5, 0.3])  # the turbine
    s.out *= s.sway(0.7, 0.6, 1.0)


def _sea_waves(s: Scene) -> None:
    s.out += 0.15 * s.noise([(60, -6), (300, 0), (1000, -3), (6000, -16)])
    for at_s in s.times(2.6, jitter=0.2, start_s=s.rng.uniform(-1.5, -0.5)):
        swell = s.noise([(60, -12), (200, 0), (500, -3), (2000, -12), (8000, -28)], length_s=4.0)
        foam = s.noise([(400, -20), (1500, 0), (4000, -3), (14000, -16)], length_s=4.0)
        x = np.arange(swell.size) / swell.size
        for wave, crest, gain in ((swell, 0.35, 1.0), (foam, 0.45, 0.4)):
            s.add(at_s, wave * ((x / crest) * np.exp(1 - x / crest)) ** 3 * np.minimum(1, (1 - x) * 4), gain)


def _wind(s: Scene) -> None:
    gust = s.sway(1.2, 0.15, 1.0)
    s.out += gust * s.noise([(30, 0), (200, -3), (600, -12), (2500, -36)], slow=4)
    for hz in (420, 640, 900):
        # A gap in the wall whistles: narrow noise whose pitch follows the gust.
        mist = np.cumsum(s.rng.standard_normal(s.n)) * 4 / np.sqrt(s.rate)
        tone = np.sin(2 * np.pi * np.cumsum(hz * (0.8 + 0.35 * gust)) / s.rate + mist)
        s.out += 0.18 * gust**2 * s.sway(3, 0, 1) * tone


def _clock_alarm(s: Scene) -> None:
    pitch_hz = s.rng.uniform(2000, 2100)
    t = np.arange(round(0.07 * s.rate)) / s.rate
    beep = s.voice(np.full(t.size, pitch_hz), [1, 0.1, 0.35, 0.0, 0.2])
    beep *= np.minimum(1, np.minimum(t, t[::-1]) / 0.002)
    for at_s in s.times(1.0, start_s=0.15):
        for k in range(4):
            s.add(at_s + 0.125 * k, beep)
    s.room(0.1, 0.2)


def _water_drops(s: Scene) -> None:
    for at_s in s.times(0.55, jitter=0.4, start_s=0.2):
        for k in range(s.rng.integers(1, 3)):
            hz, fall_s = s.rng.uniform(700, 1800), s.rng.uniform(0.06, 0.14)
            t = np.arange(round(fall_s * s.rate)) / s.rate
            # A bubble near the surface: the pitch rises as it does.
            bubble = s.voice(hz * (1 + 3.0 * t), [1]) * np.exp(-6.9 * t / fall_s) * np.minimum(1, t / 0.001)
            late_s = k * s.rng.uniform(0.04, 0.12)
            s.add(at_s + late_s, bubble)
            s.add(at_s + late_s - 0.012, s.burst([(1000, -12), (5000, 0), (12000, -10)], 0.008), 0.1)
    s.room(0.25, 0.6)


def _vacuum_cleaner(s: Scene) -> None:
    whine_hz = s.rng.uniform(190, 215) * s.sway(2, 0.995, 1.005)
    gains = [0.6, 1.2, 0.4, 0.7, 0.3, 0.6, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.15, 0.15, 0.1]
    s.out += 0.65 * s.voice(whine_hz, gains)
    s.out += s.noise([(80, -14), (200, -3), (700, 0), (1500, -4), (4000, -10), (10000, -18), (16000, -30)])


def _chirping_birds(s: Scene) -> None:
    for home_hz, every_s, loud in ((4200, 0.9, 1.0), (3100, 1.3, 0.5), (5600, 1.1, 0.4)):
        for at_s in s.times(every_s, jitter=0.4, start_s=s.rng.uniform(0, 0.6)):
            length_s, notes = s.rng.uniform(0.05, 0.11), s.rng.integers(2, 6)
            rise, wobble = s.rng.uniform(-0.35, 0.35), s.rng.uniform(0, 0.08)
            x = np.arange(round(length_s * s.rate)) / round(length_s * s.rate)
            glide_hz = home_hz * (1 + rise * (x - 0.5) + wobble * np.sin(6 * np.pi * x))
            note = s.voice(glide_hz, [1, 0.08]) * np.sin(np.pi * x) ** 1.5
            for k in range(notes):
                s.add(at_s + k * (length_s + 0.03), note, loud)
    s.room(0.12, 0.5)
    s.out += 0.01 * s.noise([(100, 0), (2000, -12)])


def _thunderstorm(s: Scene) -> None:
    for bolt_s in s.times(6.0, jitter=0.3, start_s=0.3):
        s.add(bolt_s, s.burst([(100, 0), (1500, -4), (6000, -14)], 0.9, attack_s=0.02), 0.7)
        for late_s, gain in ((0.0, 1.0), (0.6, 0.7), (1.7, 0.5)):
            rumble = s.noise([(25, 0), (90, 0), (250, -9), (1000, -26)], length_s=4.0, slow=8)
            x = np.arange(rumble.size) / rumble.size
            s.add(bolt_s + late_s, rumble * np.minimum(1, x / 0.02) * np.exp(-4 * x), gain)
    s.out *= s.sway(7, 0.5, 1.0)
    s.out += 0.05 * s.noise([(300, -20), (2000, -3), (6000, 0), (14000, -8)])


def _crackling_fire(s: Scene) -> None:
    s.out += 0.06 * s.sway(4, 0.5, 1) * s.noise([(30, 0), (100, -3), (500, -14), (2000, -20), (10000, -20)])
    for at_s in s.times(0.05, jitter=0.95):
        length_s = s.rng.uniform(0.003, 0.012)
        snap = s.burst([(200, -14), (1500, -6), (5000, 0), (16000, -6)], length_s, attack_s=2e-4)
        s.add(at_s + s.rng.exponential(0.03), snap, min(1.0, 0.06 * s.rng.pareto(1.0)))


_SOUNDS: dict[str, tuple[str, Callable[[Scene], None]]] = {
    "steady_rain": ("rain", _rain),
    "wailing_siren": ("siren", _siren),
    "ticking_clock": ("clock_tick", _clock_tick),
    "two_bells": ("church_bells", _church_bells),
    "night_crickets": ("crickets", _crickets),
    "car_horn": ("car_horn", _car_horn),
    "knock_at_the_door": ("door_wood_knock", _door_wood_knock),
    "running_engine": ("engine", _engine),
    "helicopter": ("helicopter", _helicopter),
    "sea_waves": ("sea_waves", _sea_waves),
    "gusty_wind": ("wind", _wind),
    "alarm_clock": ("clock_alarm", _clock_alarm),
    "dripping_tap": ("water_drops", _water_drops),
    "vacuum_cleaner": ("vacuum_cleaner", _vacuum_cleaner),
    "morning_birds": ("chirping_birds", _chirping_birds),
    "thunderstorm": ("thunderstorm", _thunderstorm),
    "camp_fire": ("crackling_fire", _crackling_fire),
}
