import pytest
import torch

from customlstm import dispatch, use_backend

FUSED = dispatch.why_not_fused(torch.device("cpu"), torch.float64) is None


@pytest.fixture(autouse=True, params=["fused", "reference"] if FUSED else ["reference"])
def backend(request):
    """Everything here runs on the fused kernels, where they are built, and on the reference."""
    torch.manual_seed(0)
    with use_backend(request.param):
        yield request.param
