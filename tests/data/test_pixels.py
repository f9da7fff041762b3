from __future__ import annotations

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, RLELossless
from radiograph_files import lut, radiograph, ramp, save

from monai_basisprune.data import read_radiograph
from monai_basisprune.errors import CohortError


def render(tmp_path, *args, implicit=False, **elements):
    return read_radiograph(save(radiograph(*args, **elements), tmp_path / "image.dcm", implicit))


def unit(values):
    return (values - values.min()) / np.ptp(values)


def test_signed_values(tmp_path):
    values = ramp(low=-2000, high=2000)
    image, info = render(tmp_path, values, signed=True)
    np.testing.assert_allclose(image, unit(values), atol=1e-6)
    assert info.low == -2000


def test_signed_values_with_unset_sign_extension(tmp_path):
    values = ramp(low=-2000, high=2000)
    image, info = render(tmp_path, values & 0x0FFF, PixelRepresentation=1)
    np.testing.assert_allclose(image, unit(values), atol=1e-6)
    assert info.low == -2000


def test_overlay_in_unused_high_bits_is_masked(tmp_path):
    overlay = (np.arange(240).reshape(12, 20) % 7 == 0).astype(np.int64) << 14
    image, _ = render(tmp_path, ramp() | overlay)
    np.testing.assert_allclose(image, unit(ramp()), atol=1e-6)


def test_high_bit_above_the_stored_bits(tmp_path):
    image, _ = render(tmp_path, (ramp() << 4) | 5, HighBit=15)
    np.testing.assert_allclose(image, unit(ramp()), atol=1e-6)


def test_eight_bits(tmp_path):
    values = ramp(low=3, high=250)
    pixels = values.astype(np.uint8).tobytes()
    image, _ = render(tmp_path, values, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=pixels)
    np.testing.assert_allclose(image, unit(values), atol=1e-6)


def test_linear_window_follows_the_equation_of_the_standard(tmp_path):
    image, info = render(tmp_path, WindowCenter=[2000, 1], WindowWidth=[1000, 2])
    x = ramp()
    expected = np.where(x <= 2000 - 0.5 - 999 / 2, 0, np.where(x > 2000 - 0.5 + 999 / 2, 1, (x - 1999.5) / 999 + 0.5))
    np.testing.assert_allclose(image, expected, atol=1e-6)
    assert info.display_transform == "window LINEAR"


def test_linear_exact_and_sigmoid_windows(tmp_path):
    x = ramp()
    image, _ = render(tmp_path, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(image, np.clip((x - 2000) / 1000 + 0.5, 0, 1), atol=1e-6)
    image, info = render(tmp_path, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(image, 1 / (1 + np.exp(-4 * (x - 2000) / 1000)), atol=1e-6)
    assert info.display_transform == "window SIGMOID"


def test_window_of_width_one_is_a_step(tmp_path):
    image, _ = render(tmp_path, WindowCenter=2000, WindowWidth=1)
    np.testing.assert_array_equal(image, ramp() > 1999.5)


def test_window_applies_after_rescale(tmp_path):
    x = ramp() * 0.5 - 1000
    image, info = render(tmp_path, RescaleSlope=0.5, RescaleIntercept=-1000, WindowCenter=0, WindowWidth=500.5)
    np.testing.assert_allclose(image, np.clip((x + 0.5) / 499.5 + 0.5, 0, 1), atol=1e-6)
    assert info.modality_transform == "rescale"


def test_negative_slope_turns_the_gray_scale(tmp_path):
    image, _ = render(tmp_path, RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_allclose(image, 1 - unit(ramp()), atol=1e-6)


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("implicit", [False, True])
def test_voi_lut_goes_before_a_window_and_keeps_its_ends(tmp_path, vr, implicit):
    entries = np.arange(1000, 3000) * 8
    image, info = render(
        tmp_path, implicit=implicit, VOILUTSequence=lut(entries, 1000, 16, vr), WindowCenter=5, WindowWidth=5
    )
    np.testing.assert_allclose(image, np.clip(ramp(), 1000, 2999) * 8 / 65535, atol=1e-6)
    assert info.display_transform == "VOI LUT"


def test_big_endian_file_with_a_voi_lut(tmp_path):
    dataset = radiograph(VOILUTSequence=lut(np.arange(4096) * 10, 0, 16, "OW"))
    dataset.VOILUTSequence[0].LUTData = (np.arange(4096) * 10).astype(">u2").tobytes()
    dataset.PixelData = ramp().astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.set_original_encoding(False, False)
    image, _ = read_radiograph(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_allclose(image, ramp() * 10 / 65535, atol=1e-6)


def test_voi_lut_of_eight_bits_does_not_wrap(tmp_path):
    image, _ = render(tmp_path, VOILUTSequence=lut(np.arange(256), 3000, 8))
    np.testing.assert_allclose(image, np.clip(ramp() - 3000, 0, 255) / 255, atol=1e-6)


def test_packed_voi_lut_of_eight_bits(tmp_path):
    sequence = lut(np.arange(256), 3000, 8, "OW")
    sequence[0].LUTData = np.arange(256, dtype=np.uint8).tobytes()
    image, _ = render(tmp_path, VOILUTSequence=sequence)
    np.testing.assert_allclose(image, np.clip(ramp() - 3000, 0, 255) / 255, atol=1e-6)


@pytest.mark.parametrize("implicit", [False, True])
def test_voi_lut_of_signed_input(tmp_path, implicit):
    values = ramp(low=-1500, high=1500)
    image, _ = render(
        tmp_path, values, implicit=implicit, signed=True, VOILUTSequence=lut(np.arange(2001) * 30, -1000, 16)
    )
    np.testing.assert_allclose(image, np.clip(values + 1000, 0, 2000) * 30 / 65535, atol=1e-6)


def test_modality_lut_of_twelve_bits(tmp_path):
    image, info = render(tmp_path, ModalityLUTSequence=lut(4095 - np.arange(4096), 0, 12))
    np.testing.assert_allclose(image, 1 - unit(ramp()), atol=1e-6)
    assert info.modality_transform == "LUT"


def test_a_lut_that_does_not_fit_its_descriptor_is_refused(tmp_path):
    sequence = lut(np.arange(100))
    sequence[0].LUTDescriptor = [4096, 0, 16]
    with pytest.raises(CohortError, match="VOILUTSequence that cannot be read"):
        render(tmp_path, VOILUTSequence=sequence)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(tmp_path, photometric):
    values = ramp(low=1000, high=3000)
    values[:, :4] = 4095
    values[:, 4] = 4094
    image, info = render(
        tmp_path,
        values,
        PixelPaddingValue=4095,
        PixelPaddingRangeLimit=4094,
        PhotometricInterpretation=photometric,
    )
    inside = unit(values[:, 5:])
    np.testing.assert_allclose(image[:, 5:], 1 - inside if photometric == "MONOCHROME1" else inside, atol=1e-6)
    assert (image[:, :5] == 0).all()
    assert info.padded_pixels == 60


def test_negative_padding_in_implicit_file(tmp_path):
    values = ramp(low=-100, high=2000)
    values[0] = -2000
    dataset = radiograph(values, signed=True)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    image, info = read_radiograph(save(dataset, tmp_path / "a.dcm", implicit=True))
    assert info.padded_pixels == 20
    assert info.low == values[1, 0]
    assert (image[0] == 0).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [False, True])
def test_compressed_equals_native(tmp_path, syntax, signed):
    values = ramp(64, 80, -1000, 1000) if signed else ramp(64, 80)
    dataset = radiograph(values, signed=signed)
    dataset.compress(syntax, generate_instance_uid=False)
    image, _ = read_radiograph(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_allclose(image, unit(values), atol=1e-6)


def test_jpeg_ls_equals_native():
    compressed, _ = read_radiograph(get_testdata_file("MR_small_jpeg_ls_lossless.dcm", download=False))
    native, _ = read_radiograph(get_testdata_file("MR_small.dcm", download=False))
    np.testing.assert_array_equal(compressed, native)


def test_truncated_compressed_frame_is_refused(tmp_path):
    dataset = radiograph()
    dataset.compress(RLELossless, generate_instance_uid=False)
    content = save(dataset, tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[:-60])
    with pytest.warns(UserWarning, match="End of file"), pytest.raises(CohortError, match=r"no image .no PixelData"):
        read_radiograph(tmp_path / "a.dcm")
