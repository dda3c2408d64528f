"""The learner's package: everything a notebook or a page of the course needs, and never an answer.

Names used in every notebook are here: :func:`device`, :func:`generator`, :func:`refuse`, and :mod:`lab.check`.
The rest is imported by its module: ``from lab import data, figures, models, training``.
"""

import torch

from lab.device import device
from lab.refuse import refuse
from lab.seeds import generator

__all__ = ["device", "generator", "refuse"]

# The models of this course are small. On a CPU a second thread does not make them faster, and on a busy machine
# threads that wait for each other make them ten times slower: measured on the translator of the exercise `block`.
torch.set_num_threads(1)
