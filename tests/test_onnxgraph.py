"""onnxgraph: the schema is ONNX's, a classifier passes, and everything of RELIABILITY M14-M18 is refused."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from soundmark import onnxgraph
from soundmark.errors import BundleError
from tiny import tiny_graph, tiny_model


def verdict(model: onnx.ModelProto) -> None:
    onnxgraph.check(onnxgraph.parse(model.SerializeToString(), name="m.onnx"), name="m.onnx")


def test_every_field_of_the_schema_is_the_field_of_onnx() -> None:
    pool = onnxgraph.ModelProto.DESCRIPTOR.file.message_types_by_name
    nested = {
        "TensorTypeProto": onnx.TypeProto.Tensor,
        "DimensionProto": onnx.TensorShapeProto.Dimension,
    }
    for name, ours in pool.items():
        theirs = nested.get(name, getattr(onnx, name, None)).DESCRIPTOR
        for field in ours.fields:
            other = theirs.fields_by_number[field.number]
            varint = {field.TYPE_INT32, field.TYPE_ENUM}
            assert field.is_repeated == other.is_repeated, (name, field.name)
            assert field.is_packed == other.is_packed, (name, field.name)
            if {field.type, other.type} != varint and (field.type, other.type) != (
                12,
                11,
            ):  # enum; refused message
                assert field.type == other.type, (name, field.name)
            if other.type != 11 or field.type == 11:
                assert field.name == other.name


def test_allow_list_holds_real_operators_and_no_allocation_by_number() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known >= onnxgraph.ALLOWED_OPS
    refused = "ConstantOfShape Range Expand Tile Resize Upsample OneHot RandomNormal If Loop Scan EyeLike SequenceMap"
    assert not onnxgraph.ALLOWED_OPS & set(refused.split())


def test_the_tiny_model_passes_and_tells_its_input_and_output(tiny_model_bytes: bytes) -> None:
    model = onnxgraph.parse(tiny_model_bytes, name="tiny")
    onnxgraph.check(model, name="tiny")
    assert onnxgraph.input_output(model) == (
        (onnxgraph.TensorInfo("features", "float32", ("batch", 32, 63)),),
        (onnxgraph.TensorInfo("logits", "float32", ("batch", 4)),),
    )


def test_serialising_keeps_fields_that_the_schema_does_not_know() -> None:
    model = tiny_graph()
    note = model.graph.quantization_annotation.add()
    note.tensor_name = "features"
    again = onnxgraph.parse(model.SerializeToString(), name="m")
    again.graph.output.add(name="r1")
    back = onnx.load_model_from_string(again.SerializeToString())
    assert back.graph.output[-1].name == "r1"
    del back.graph.output[-1]
    assert back == model


def subgraph() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "sub", [], [])


def external(**entries: str) -> Callable[[onnx.ModelProto], None]:
    def spoil(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[1]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    return spoil


def external_in_attribute(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "c")
    tensor.external_data.add(key="location", value="../../etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def external_in_subgraph(model: onnx.ModelProto) -> None:
    graph = subgraph()
    external_tensor = graph.initializer.add(name="w", data_type=1, dims=[1], data_location=1)
    external_tensor.external_data.add(key="location", value="x")
    model.graph.node.append(helper.make_node("Identity", ["b1"], ["z"], body=graph))


def sparse(model: onnx.ModelProto) -> None:
    one = model.graph.sparse_initializer.add(dims=[4])
    one.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    one.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))


def sparse_attribute(model: onnx.ModelProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="sparse_value")
    attribute.sparse_tensor.dims.append(4)


def function(model: onnx.ModelProto) -> None:
    model.functions.append(
        helper.make_function(
            "my", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], model.opset_import
        )
    )


def big_initialiser(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="big", data_type=1, dims=[1 << 20, 1 << 12], raw_data=b"\0" * 16)


def short_initialiser(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[:-4]


def ragged_initialiser(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].raw_data += b"\0"


def sequence_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.Clear()
    model.graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = 1


def node(op: str, **attributes: object) -> Callable[[onnx.ModelProto], None]:
    domain = str(attributes.pop("domain", ""))
    return lambda model: model.graph.node.append(
        helper.make_node(op, ["b1"], ["z"], domain=domain, **attributes)
    )


def edit(**values: int) -> Callable[[onnx.ModelProto], None]:
    def spoil(model: onnx.ModelProto) -> None:
        model.ir_version = values.get("ir", model.ir_version)
        model.opset_import[0].version = values.get("opset", model.opset_import[0].version)

    return spoil


def many_nodes(model: onnx.ModelProto) -> None:
    model.graph.node.extend([helper.make_node("Relu", ["b1"], [f"z{i}"]) for i in range(onnxgraph.MAX_NODES)])


FORBIDDEN = {
    "M14 IR 99": edit(ir=99),
    "M14 IR 3": edit(ir=3),
    "M14 opset 999": edit(opset=999),
    "M14 opset 7": edit(opset=7),
    "M14 two opsets": lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 18)),
    "M15 inside": external(location="weights.bin"),
    "M15 parent": external(location="../weights.bin"),
    "M15 absolute": external(location="/etc/passwd"),
    "M15 huge": external(location="w", length=str(1 << 40)),
    "M15 negative": external(location="w", offset="-5"),
    "M15 flag only": external(),
    "M15 attribute": external_in_attribute,
    "M15 subgraph": external_in_subgraph,
    "M15 sparse": sparse,
    "M15 sparse attribute": sparse_attribute,
    "M16 custom domain": node("MyOp", domain="evil.ops"),
    "M16 com.microsoft": node("FusedConv", domain="com.microsoft"),
    "M16 unknown op": node("MyOp"),
    "M16 If": node("If", then_branch=subgraph(), else_branch=subgraph()),
    "M16 Loop": node("Loop", body=subgraph()),
    "M16 Scan": node("Scan", body=subgraph(), num_scan_inputs=1),
    "M16 graph attribute on an allowed op": node("Identity", body=subgraph()),
    "M16 graphs attribute": node("Identity", bodies=[subgraph()]),
    "M16 function": function,
    "M17 ConstantOfShape": node("ConstantOfShape"),
    "M17 Range": node("Range"),
    "M17 Expand": node("Expand"),
    "M17 Tile": node("Tile"),
    "M17 big initialiser": big_initialiser,
    "M17 pads of 2^40": node("MaxPool", kernel_shape=[1], pads=[1 << 40, 0]),
    "short initialiser": short_initialiser,
    "ragged initialiser": ragged_initialiser,
    "negative dimension": lambda m: m.graph.initializer.add(name="n", data_type=1, dims=[-1]),
    "strings": lambda m: m.graph.initializer.add(name="s", data_type=8, dims=[1], string_data=[b"x"]),
    "sequence": sequence_output,
    "training info": lambda m: m.training_info.add(),
    "too many nodes": many_nodes,
    "no node": lambda m: m.graph.ClearField("node"),
    "overload": lambda m: setattr(m.graph.node[0], "overload", "x"),
    "reference attribute": lambda m: setattr(m.graph.node[1].attribute[0], "ref_attr_name", "x"),
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_what_is_not_allowed_is_refused(case: str) -> None:
    model = tiny_graph()
    FORBIDDEN[case](model)
    with pytest.raises(BundleError) as refused:
        verdict(model)
    assert refused.value.code == "model_not_allowed"
    assert "m.onnx" in str(refused.value)
    assert refused.value.wanted


def test_unused_domains_that_exporters_leave_behind_are_fine() -> None:
    model = tiny_graph()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    verdict(model)


def test_values_may_be_in_typed_fields() -> None:
    model = tiny_graph()
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.INT8, [2], [1, -1]))
    verdict(model)


class Payload:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.canary, "w")


def test_bytes_that_are_no_model_are_refused(tiny_model_bytes: bytes, tmp_path) -> None:
    canary = tmp_path / "canary"
    cut = [tiny_model_bytes[: len(tiny_model_bytes) * part // 100] for part in (10, 50, 99)]
    others = [
        b"",
        b"\0",
        b"\x08",
        pickle.dumps(Payload(str(canary))),  # M4
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}",
        b"PK\x03\x04" + bytes(100),
        b"\x10\0\0\0ORTM" + bytes(100),  # M18: ORT flatbuffer
        b"<?xml version='1.0'?><net/>",
        b"\x1f\x8b" + bytes(50),
        bytes(1000),
        b"\xff" * 1000,
    ]
    for data in [*cut, *others]:
        with pytest.raises(BundleError) as refused:
            onnxgraph.check(onnxgraph.parse(data, name="bad.onnx"), name="bad.onnx")
        assert "bad.onnx" in str(refused.value)
    assert not canary.exists()


def test_random_bytes_and_mutants_only_ever_raise_bundle_errors(tiny_model_bytes: bytes, rng) -> None:
    for _ in range(2000):
        data = bytearray(tiny_model_bytes[: rng.integers(1, 400)] if rng.random() < 0.5 else tiny_model_bytes)
        for _ in range(rng.integers(1, 8)):
            data[rng.integers(min(len(data), 600))] = rng.integers(256)
        try:
            model = onnxgraph.parse(bytes(data), name="m")
            onnxgraph.check(model, name="m")
            onnxgraph.input_output(model)
        except BundleError:
            pass


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize(
    "unit", [b"\x0a\x00", b"\x2a\x00", b"\x7a\x00"], ids=["nodes", "initialisers", "sparse"]
)
def test_a_file_of_empty_messages_is_refused_before_it_is_parsed(unit: bytes) -> None:
    graph = unit * (8 << 20)
    start = time.perf_counter()
    with pytest.raises(BundleError, match="fields"):
        onnxgraph.parse(b"\x3a" + varint(len(graph)) + graph, name="bomb")
    assert time.perf_counter() - start < 10


def test_messages_nested_a_million_deep_are_refused() -> None:
    data = b""
    for _ in range(2000):  # graph > node > attribute > graph ...
        data = b"\x3a" + varint(len(data)) + data
        data = b"\x0a" + varint(len(data)) + data
    with pytest.raises(BundleError):
        onnxgraph.parse(data, name="deep")


def test_an_int8_model_of_the_quantizer_passes(tmp_path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.rows = iter(
                [{"features": rng.standard_normal((1, 32, 63)).astype(np.float32)} for _ in range(4)]
            )

        def get_next(self):
            return next(self.rows, None)

    onnx.save(tiny_graph(), tmp_path / "f.onnx")
    quantize_static(
        tmp_path / "f.onnx",
        tmp_path / "q.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    model = onnx.load(tmp_path / "q.onnx")
    assert any(one.op_type == "DequantizeLinear" for one in model.graph.node)
    verdict(model)


def test_tiny_model_helper_takes_other_nodes() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["features"], ["m"], keepdims=0),
        helper.make_node("Relu", ["m"], ["logits"]),
    ]
    verdict(tiny_model(nodes, []))
