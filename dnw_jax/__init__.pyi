# The public names of dnw_jax: the only list. Type checkers read it, and so does __init__.py.

from dnw_jax import deploy as deploy
from dnw_jax.config import load_config as load_config
from dnw_jax.deploy.profile import profile as profile
from dnw_jax.edges import SparsitySchedule as SparsitySchedule
from dnw_jax.edges import edge_budget as edge_budget
from dnw_jax.edges import edge_mask as edge_mask
from dnw_jax.edges import sparsify as sparsify
from dnw_jax.edges import top_edges as top_edges
from dnw_jax.errors import UserError as UserError
from dnw_jax.graphs.sparse_layer import SparseConv as SparseConv
from dnw_jax.graphs.sparse_layer import SparseLinear as SparseLinear
from dnw_jax.models import build_model as build_model
from dnw_jax.models import wiring as wiring
from dnw_jax.models.reference import load_reference as load_reference
from dnw_jax.run.workdir import load as load
from dnw_jax.version import __version__ as __version__
