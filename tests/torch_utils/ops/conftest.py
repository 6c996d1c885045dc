import pytest


@pytest.fixture(params=["ref", "native"])
def each_implementation(request):
    """Runs a test with plain PyTorch and with the native operators."""
    if request.param == "native":
        request.getfixturevalue("native")
    return request.param
