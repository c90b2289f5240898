"""Cameras of synth_pedes: the places where people are filmed, and the view of one image.

All people and splits share the sites; a view adds the conditions of one image. Values are neutral
at strength 0 and grow with it, so `Settings.camera` controls everything at once. Only the
viewing direction and the stride reach their full range earlier.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from dgia_jax.data.synth_pedes.settings import Settings
from dgia_jax.data.synth_pedes.solids import RGB

NUM_SITES = 24
_WALLS = ("plain", "bricks", "windows", "panels", "trees", "shelves")
_GROUNDS = ("plain", "tiles", "crossing", "grass")
OCCLUDERS = ("pole", "bush", "box", "rail", "passer-by", "car")


@dataclasses.dataclass(frozen=True)
class Site:
  """One place: its background, and how its camera renders colours."""

  wall: str
  ground: str
  wall_rgb: RGB
  ground_rgb: RGB
  horizon: float  # fraction of the image height, from the top
  gains: tuple[float, ...]  # colour cast, one factor per channel
  gain: float  # exposure
  blur: float  # fraction of the image height
  noise: float  # standard deviation, 0..255


@dataclasses.dataclass(frozen=True)
class View:
  """The view of one image. Lengths are fractions of the image height."""

  site: Site
  yaw: float  # radians; 0: the person faces the camera
  swing: float  # radians
  bend: float
  tall: float  # height of the person, hat and umbrella included
  across: float  # of the point between the feet, from the centre
  up: float  # of the feet, from the bottom (negative: cut off)
  lean: float
  gains: tuple[float, ...]  # of this image, site and exposure included
  slope: float  # light from one side: change of the gain from left to right
  contrast: float
  blur: float
  noise: float
  coarse: float  # below 1: recorded at this fraction of the resolution
  occluder: str | None
  detail: int  # seed of clutter, occluder and noise


def sample_site(seed: int, index: int, strength: float) -> Site:
  """Samples the site with this index, 0 <= index < NUM_SITES."""
  rng = np.random.default_rng([seed, index, 3])
  grey = rng.uniform(70, 210)
  return Site(
    wall=_WALLS[rng.integers(len(_WALLS))] if strength else "plain",
    ground=_GROUNDS[rng.integers(len(_GROUNDS))] if strength else "plain",
    wall_rgb=_clip(grey * (1 + strength * rng.normal(0, 0.14, 3))),
    ground_rgb=_clip(rng.uniform(80, 190) * (1 + strength * rng.normal(0, 0.08, 3))),
    horizon=0.62 + strength * rng.uniform(-0.12, 0.1),
    gains=tuple(np.exp(strength * rng.normal(0, 0.14, 3))),
    gain=float(np.exp(strength * rng.normal(-0.06, 0.18))),
    blur=strength * rng.uniform(0, 0.012),
    noise=strength * rng.uniform(1, 9),
  )


def sample_views(settings: Settings, number: int) -> list[View]:
  """Samples the views of a person, one per image, each at a different site; deterministic."""
  strength = settings.camera
  rng = np.random.default_rng([settings.seed, number, 1])
  sites = rng.permutation(NUM_SITES)[: settings.images_per_person]
  return [_sample_view(settings, number, i, int(site), strength) for i, site in enumerate(sites)]


def _sample_view(
  settings: Settings, number: int, image: int, site_index: int, strength: float
) -> View:
  rng = np.random.default_rng([settings.seed, number, 2, image])
  site = sample_site(settings.seed, site_index, strength)
  # People mostly walk along or across the axis of a camera. Even mild cameras see them from all
  # sides, because several views of a person help most when they show different things.
  side = rng.integers(4) * math.pi / 2
  yaw = min(1.0, 5 * strength) * _half_turn(side + rng.normal(0, 0.35))
  cast = np.exp(strength * rng.normal(0, 0.05, 3))
  gain = np.exp(strength * rng.normal(0, 0.16))
  occluded = rng.random() < settings.occlusion
  occluder = OCCLUDERS[rng.integers(len(OCCLUDERS))]
  return View(
    site=site,
    yaw=yaw,
    swing=min(1.0, 2 * strength) * rng.uniform(-0.5, 0.5) * (rng.random() < 0.85),
    bend=strength * rng.uniform(0.1, 0.6),
    tall=0.9 + strength * rng.uniform(-0.14, 0.07),
    across=strength * rng.normal(0, 0.035),
    up=0.04 + strength * (rng.uniform(-0.03, 0.05) - 0.14 * (rng.random() < 0.12)),
    lean=strength * rng.normal(0, 0.03),
    gains=tuple(np.asarray(site.gains) * site.gain * cast * gain),
    slope=strength * rng.uniform(-0.35, 0.35),
    contrast=1 - strength * rng.uniform(0, 0.3),
    blur=site.blur + strength * rng.uniform(0, 0.006),
    noise=site.noise + strength * rng.uniform(0, 4),
    coarse=1 - min(0.6, strength * 0.5) * (rng.random() < 0.2),
    occluder=occluder if occluded else None,
    detail=int(rng.integers(2**31)),
  )


def _half_turn(angle: float) -> float:
  """The same direction in [-pi, pi)."""
  return (angle + math.pi) % (2 * math.pi) - math.pi


def _clip(rgb: Sequence[float] | np.ndarray) -> RGB:
  return tuple(int(np.clip(c, 20, 240)) for c in rgb)
