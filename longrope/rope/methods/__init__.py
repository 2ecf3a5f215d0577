"""Published scaling methods, one a file; each composes itself with the factors a model already has."""

from longrope.rope.methods.abf import abf as abf
from longrope.rope.methods.dynamic_ntk import DynamicNTK as DynamicNTK
from longrope.rope.methods.linear import linear as linear
from longrope.rope.methods.llama3 import llama3 as llama3
from longrope.rope.methods.ntk import ntk as ntk
from longrope.rope.methods.yarn import yarn as yarn
