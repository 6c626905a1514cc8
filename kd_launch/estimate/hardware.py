"""The GPUs and links of a request: equal nodes as they are usually built, unless the request says otherwise."""

import functools

from kd_launch.catalog import Gpu
from kd_launch.cluster import Pool
from kd_launch.cost.constants import Constants
from kd_launch.cost.setting import Site, site_of
from kd_launch.estimate.request import DTYPES, Request


def site_for(request: Request, constants: Constants) -> Site:
    """The pool of equal nodes that the request describes.

    Where the fast link joins more devices than a node has (NVL72), so many nodes count as one.
    """
    per_node = min(request.gpus_per_node, request.gpus)
    inside = min(request.gpu.link_domain or per_node, request.gpus)
    return _site(
        request.gpu,
        max(per_node, inside),
        _network(request, max(per_node, inside), constants),
        DTYPES[request.dtype],
        constants,
    )


def _network(request: Request, inside: int, constants: Constants) -> float:
    """GB/s out of those devices together."""
    if request.inter_node_gb_per_s is not None:
        return request.inter_node_gb_per_s * inside / request.gpus_per_node
    if request.gpu.nic_gb_per_s is not None:
        return request.gpu.nic_gb_per_s * inside
    return constants.links.network_gb_per_s


@functools.lru_cache(maxsize=1024)
def _site(gpu: Gpu, inside: int, network: float, dtype: str, constants: Constants) -> Site:
    pool = Pool(
        name="estimate",
        nodes=1,
        gpus_per_node=inside,
        gpu=gpu.id,
        inter_node_gb_per_s=network,
    )
    return site_of(pool, gpu, dtype, dtype, constants)
