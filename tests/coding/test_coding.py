"""The dot code, the error-correcting codes, and payloads in stamps."""

import zlib

import numpy as np
import pytest
import torch
from ldpc import BpDecoder
from scipy.sparse import csr_matrix
from torch import nn

from clearstamp.coding.codes import Hamming, ReedSolomon
from clearstamp.coding.ldpc import LowDensity
from clearstamp.coding.payload import (
    CODES,
    capacity,
    decode,
    draw_bits,
    encode,
    log_likelihood_ratios,
    read_bits,
)
from clearstamp.errors import CodingError
from clearstamp.reading import read_bytes, try_bytes
from clearstamp.stamp import Stamp
from clearstamp.training.loops import harden
from clearstamp.transpose import transpose

GRAY, COLOUR = (1, 28, 28), (3, 32, 32)
SURE = 8.0  # the log-likelihood ratio of a bit that is certain


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).integers(0, 2, shape, np.uint8)


def ratios(bits: np.ndarray) -> np.ndarray:
    return np.where(bits, -SURE, SURE)


# --------------------------------------------------------------------------------------------------------- dot code


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("patches", [1, 6, 10, 28])
@pytest.mark.parametrize("shape", [GRAY, COLOUR, (3, 28, 40)])
def test_bits_survive_their_images(shape, patches, per_channel):
    bits = drawn(5, capacity(shape, patches, per_channel))
    images = draw_bits(bits, shape, patches, per_channel=per_channel)
    assert images.shape == (5, *shape) and set(images.unique().tolist()) <= {0.0, 1.0}
    assert np.array_equal(read_bits(images, patches, per_channel=per_channel), bits)
    if patches > 1:
        assert np.array_equal(log_likelihood_ratios(images, patches, per_channel=per_channel) < 0, bits.astype(bool))


def test_patches_lie_row_by_row_black_for_0():
    image = draw_bits(np.array([[0, 1, 1, 0]], np.uint8), (1, 4, 4), 2)[0, 0]
    assert image.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_a_patch_is_what_most_of_its_pixels_are_and_a_pixel_is_white_if_a_channel_is():
    image = torch.full((1, 3, 2, 2), 0.52)
    image[0, 1, 0, :] = 0.53  # two of four pixels, in one channel: no majority
    assert read_bits(image, 1).tolist() == [[0]]
    image[0, 2, 1, 0] = 0.9
    assert read_bits(image, 1).tolist() == [[1]]
    assert read_bits(image, 1, per_channel=True).tolist() == [[0, 0, 0]]


def test_ratios_are_larger_the_clearer_a_patch_is():
    image = draw_bits(np.array([[0, 1, 1, 0]], np.uint8), (1, 8, 8), 2)
    image[0, 0, :4, 4:] = 0.6
    first, pale, clear, last = log_likelihood_ratios(image, 2)[0]
    assert first > 0 > pale > clear and last > 0


def test_levels_do_not_matter_to_ratios():
    image = draw_bits(drawn(3, 36), GRAY, 6)
    np.testing.assert_allclose(log_likelihood_ratios(image * 0.01 + 7, 6), log_likelihood_ratios(image, 6), rtol=1e-3)


@pytest.mark.parametrize("patches", [0, 29, -1])
def test_patches_that_the_image_does_not_hold(patches):
    with pytest.raises(CodingError, match="number of patches out of range.*1 to 28"):
        draw_bits(drawn(1, 4), GRAY, patches)


@pytest.mark.parametrize("bits", [drawn(1, 35), drawn(36), 2 * np.ones((1, 36), np.uint8)])
def test_bits_that_do_not_fit(bits):
    with pytest.raises(CodingError, match="the bits do not fit the images"):
        draw_bits(bits, GRAY, 6)


# ------------------------------------------------------------------------------------------------------------ codes


@pytest.mark.parametrize("name", ["none", "hamming", "ldpc"])
def test_messages_of_every_length_survive(name):
    numbers, code = np.random.default_rng(0), CODES[name]
    for length in range(4097):
        message = numbers.integers(0, 2, 8 * length, np.uint8)
        assert np.array_equal(code.decode(ratios(code.encode(message)), 8 * length), message)


def test_reed_solomon_messages_survive():
    code = CODES["reed-solomon"]
    for length in (0, 1, 2, 144, 145, 146, 290, 1000, 4096):
        message = drawn(8 * length)
        assert np.array_equal(code.decode(ratios(code.encode(message)), 8 * length), message)


@pytest.mark.parametrize("wrong", range(7))
def test_hamming_corrects_every_single_error(wrong):
    code = Hamming()
    for value in range(16):
        message = np.unpackbits(np.array([value], np.uint8))[4:].repeat(2)
        word = code.encode(message)
        word[wrong] ^= 1
        word[7 + (wrong + 3) % 7] ^= 1
        assert np.array_equal(code.decode(ratios(word), 8), message)


@pytest.mark.parametrize(("wrong", "corrected"), [(55, True), (56, False)])
def test_reed_solomon_corrects_as_many_bytes_as_it_guarantees(wrong, corrected):
    code, message = ReedSolomon(), drawn(8 * 200)
    word = np.packbits(code.encode(message))
    word[np.random.default_rng(0).permutation(255)[:wrong]] ^= 0xFF
    found = code.decode(ratios(np.unpackbits(word)), len(message))
    assert np.array_equal(found, message) == corrected and len(found) == len(message)


@pytest.mark.parametrize(("rate", "right"), [(0.0592, True), (0.12, False)])
def test_ldpc_corrects_the_errors_that_the_paper_s_licence_has(rate, right):
    code, numbers = LowDensity(), np.random.default_rng(1)
    message = numbers.integers(0, 2, 8544, np.uint8)
    word = code.encode(message)
    assert len(word) == 14_952, "no more than the paper embeds"
    flipped = word ^ (numbers.random(len(word)) < rate)
    certain = np.log((1 - rate) / rate)
    assert np.array_equal(code.decode(certain * np.where(flipped, -1, 1), 8544), message) == right


def test_ldpc_listens_to_ratios():
    code, numbers = LowDensity(), np.random.default_rng(1)
    message = numbers.integers(0, 2, 8544, np.uint8)
    signal = 2.0 * code.encode(message) - 1 + 0.78 * numbers.standard_normal(14_952)
    soft = -2 * signal / 0.78**2
    assert np.array_equal(code.decode(soft, 8544), message)
    assert not np.array_equal(code.decode(np.sign(soft) * 2, 8544), message), "the signs alone have too many errors"


@pytest.mark.parametrize("spread", [0.5, 0.7])
def test_ldpc_decodes_as_another_decoder_of_the_same_checks(spread):
    size, code, numbers = 800, LowDensity(), np.random.default_rng(2)
    checks, bits = code.edges(size)
    matrix = np.zeros((code.parity(size), size + code.parity(size)), np.uint8)
    matrix[checks, bits] = 1
    steps = np.arange(code.parity(size))
    matrix[steps, size + steps] = matrix[steps[1:], size + steps[:-1]] = 1
    for _ in range(5):
        word = code.encode(numbers.integers(0, 2, size, np.uint8))
        assert not (matrix @ word % 2).any()
        soft = 2 * (1 - 2.0 * word + spread * numbers.standard_normal(len(word))) / spread**2
        other = BpDecoder(
            csr_matrix(matrix),
            error_channel=list(1 / (1 + np.exp(np.abs(soft)))),
            bp_method="product_sum",
            max_iter=code.ROUNDS,
            input_vector_type="syndrome",
        )
        received = (soft < 0).astype(np.uint8)
        errors = other.decode((matrix @ received % 2).astype(np.uint8))
        assert other.converge and np.array_equal(code.decode(soft, size), (received ^ errors)[:size])


@pytest.mark.parametrize("size", [8, 24, 800, 8544])
def test_every_message_bit_of_ldpc_is_in_three_checks_and_the_checks_share_them_out(size):
    checks, bits = LowDensity.edges(size)
    counts = np.bincount(checks, minlength=LowDensity.parity(size))
    assert counts.max() - counts.min() <= 1 and np.array_equal(np.bincount(bits), np.full(size, 3))
    assert len({(c, b) for c, b in zip(checks.tolist(), bits.tolist(), strict=True)}) == len(bits)


# --------------------------------------------------------------------------------------------------------- payloads


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("length", [0, 1, 7, 200])
def test_payloads_survive(code, length):
    data = bytes(np.random.default_rng(length).integers(0, 256, length, np.uint8))
    images, payload = encode(data, COLOUR, code=code, patches=10, per_channel=length == 7, seed=3)
    found = decode(images, payload)
    assert (found.data, found.right, found.corrected) == (data, True, 0) and len(images) >= 1


def test_black_and_white_are_in_balance_even_for_a_blank_text():
    images, _ = encode(b" " * 500, GRAY, code="none", patches=6, per_channel=False, seed=0)
    assert 0.45 < images.mean() < 0.55


def test_a_lost_image_is_spread_over_the_code_words():
    data = bytes(range(200))
    images, payload = encode(data, GRAY, code="ldpc", patches=6, per_channel=False, seed=0)
    images[5] = 1 - images[5]
    found = decode(images, payload)
    assert found.right and found.corrected > 30
    images[:30] = torch.rand(30, *GRAY, generator=torch.Generator().manual_seed(0))
    assert not decode(images, payload).right, "never returned as right"


def test_wrong_bits_that_form_a_code_word_are_found_out_by_the_checksum():
    images, payload = encode(b"mine", GRAY, code="none", patches=6, per_channel=False, seed=0)
    images[0, :, :4, :4] = 1 - images[0, :, :4, :4]
    found = decode(images, payload)
    assert not found.right and zlib.crc32(found.data) != payload.checksum


def test_too_few_images():
    images, payload = encode(bytes(50), GRAY, code="none", patches=6, per_channel=False, seed=0)
    with pytest.raises(CodingError, match="fewer images than the payload needs; got: 2; expected: 400 bits"):
        decode(images[:2], payload)


def test_unknown_code():
    with pytest.raises(CodingError, match="unknown code; got: 'turbo'; expected: none, hamming, reed-solomon, ldpc"):
        Stamp.from_bytes(b"a", outputs=4, shape=GRAY, seed=0, code="turbo")


# ----------------------------------------------------------------------------------------------------------- stamps


@pytest.fixture
def marked():
    """A small network that has learned a stamp of eleven bytes, from its file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 128), nn.ReLU(), nn.Linear(128, 12))
    stamp = Stamp.from_bytes(b"ClearStamp!", outputs=12, shape=(1, 12, 12), seed=0, patches=6)
    back = transpose(model, stamp.secrets[:1], readout="adjoint")
    harden(back, stamp, steps=300, target=0.98, lr=3e-3, progress=False)
    return back, stamp


def test_a_payload_is_read_back_from_a_network(marked, tmp_path):
    back, stamp = marked
    stamp.save(tmp_path / "stamp.safetensors")
    loaded = Stamp.load(tmp_path / "stamp.safetensors")
    assert loaded.payload == stamp.payload and len(stamp) == 5
    found = read_bytes(back, loaded)
    assert found.data == b"ClearStamp!" and found.errors.shape == (5,) and found.errors.mean() < 0.05


def test_a_payload_that_is_gone_is_reported(marked):
    back, stamp = marked
    with torch.no_grad():
        for weight in back.model.parameters():
            weight.copy_(torch.randn_like(weight))
    with pytest.raises(CodingError, match=r"cannot be read back; got: \d+\.\d\d% wrong bits.*of 5 images lost"):
        read_bytes(back, stamp)
    found, errors = try_bytes(back, stamp)
    assert not found.right and errors.mean() > 0.2


def test_a_stamp_without_a_payload(marked):
    back, stamp = marked
    plain = Stamp(stamp.keys, stamp.secrets, stamp.labels)
    with pytest.raises(CodingError, match="holds no payload"):
        read_bytes(back, plain)
