"""Affine poses of images and voxels: resampling, parameterisations, losses and the pose search."""

from jaxeff.affine.pose_search import Search, search
from jaxeff.affine.poses import POSES, Poses
from jaxeff.affine.refine import Found, Problem, adam, align, gauss_newton
from jaxeff.affine.resampling import Transform, compose, inverse, resample

__all__ = [
    "POSES",
    "Found",
    "Poses",
    "Problem",
    "Search",
    "Transform",
    "adam",
    "align",
    "compose",
    "gauss_newton",
    "inverse",
    "resample",
    "search",
]
