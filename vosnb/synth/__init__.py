"""Made-up clips with ground truth: the turbulent channel, and scenes with objects that hide, cross, come late and deform."""

from .scenes import KINDS, Scene, scene, write_scenes
from .turbulence import turbulence

__all__ = ["KINDS", "Scene", "scene", "turbulence", "write_scenes"]
