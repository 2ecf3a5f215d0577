"""The residual stream, on the device and on the host: what is read is what was written last."""

import pytest
import torch

from longrope.model.residual import DeviceResidual, HostResidual


@pytest.mark.parametrize("kind", [DeviceResidual, HostResidual])
@pytest.mark.parametrize("chunk", [3, 4, 8])
def test_what_is_read_is_what_was_written_last(kind, chunk):
    """Layer after layer, of a part that begins at 16; of the whole of it at once no chunk is fetched ahead."""
    expected = torch.randn(2, 8, 5)
    residual = kind(expected[:, :chunk], 16, 24)
    residual.write(16, expected)
    for _ in range(3):
        for start in range(16, 24, chunk):
            stop = min(start + chunk, 24)
            found = residual.read(start, stop).clone()
            assert torch.equal(found, expected[:, start - 16 : stop - 16])
            residual.write(start, found + 1)
        expected = expected + 1


def test_a_chunk_that_is_begun_again_is_read_again():
    """As smaller ones, where memory ran out."""
    states = torch.randn(1, 8, 5)
    residual = HostResidual(states, 0, 8)
    residual.write(0, states)
    for start, stop in ((0, 4), (4, 8), (4, 6), (6, 8), (6, 8)):
        assert torch.equal(residual.read(start, stop), states[:, start:stop])
