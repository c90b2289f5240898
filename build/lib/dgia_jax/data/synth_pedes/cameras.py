"""Cameras of synth_pedes: the places where people are filmed, and one view of one person.

Sites are shared by all people and splits; a view adds what changes from picture to picture. All
values are neutral at strength 0 and grow with it, so `Settings.camera` moves everything at once;
the exceptions are the direction people are seen from and their stride, which soon vary fully.
"""

import dataclasses
import math

import numpy as np

NUM_SITES = 24
_WALLS = ("plain", "bricks", "windows", "panels", "trees", "shelves")
_GROUNDS = ("plain", "tiles", "crossing", "grass")
OCCLUDERS = ("pole", "bush", "box", "rail", "passer-by", "car")


@dataclasses.dataclass(frozen=True)
class Site:
  """One place: what is behind people and how its camera renders colour."""

  wall: str
  ground: str
  wall_rgb: tuple
  ground_rgb: tuple
  horizon: float  # share of the picture's height, from the top
  gains: tuple  # colour cast, one factor per channel
  gain: float  # exposure
  blur: float  # share of the picture's height
  noise: float  # standard deviation, 0..255


@dataclasses.dataclass(frozen=True)
class View:
  """One picture of a person. Lengths are shares of the picture's height."""

  site: Site
  yaw: float  # radians; 0 from the front
  swing: float  # radians
  bend: float
  tall: float  # of the person with what is worn and carried
  across: float  # of the feet's middle from the centre
  up: float  # of the feet from the bottom (negative: cut off)
  lean: float
  gains: tuple  # of this picture, site and exposure included
  slope: float  # light from one side: change of gain from left to right
  contrast: float
  blur: float
  noise: float
  coarse: float  # below 1: recorded at this share of the resolution
  occluder: str | None
  detail: int  # seed of clutter, occluder and noise


def sample_site(seed, index, strength):
  """The site with this index, 0 <= index < NUM_SITES."""
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


def sample_views(settings, number):
  """The views of a person, one per image, each at another site. Pure in (settings, number)."""
  strength = settings.camera
  rng = np.random.default_rng([settings.seed, number, 1])
  sites = rng.permutation(NUM_SITES)[: settings.images_per_person]
  return [_sample_view(settings, number, i, int(site), strength) for i, site in enumerate(sites)]


def _sample_view(settings, number, image, site_index, strength):
  rng = np.random.default_rng([settings.seed, number, 2, image])
  site = sample_site(settings.seed, site_index, strength)
  # People walk along or across a camera's axis, mostly. Even mild cameras see them from all sides:
  # what one view hides and another shows makes several views of a person worth having.
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


def _half_turn(angle):
  """The same direction in (-pi, pi]."""
  return (angle + math.pi) % (2 * math.pi) - math.pi


def _clip(rgb):
  return tuple(int(np.clip(c, 20, 240)) for c in rgb)
