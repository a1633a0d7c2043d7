"""Writes JAX functions as ONNX programs.

A function is traced for one example, and its equations are evaluated in order. An equation of known values, such as the
times of an integrator, the counter of a loop or the flag of a full buffer, is computed by JAX. So loops unroll,
conditions choose a branch, and only arithmetic on the inputs remains.

Every ONNX tensor has the shape `(batch, size)`, because each example is flattened. The elements of all tensors are
numbered, and an array that depends on the inputs is a table of such numbers. A slice, a transpose or a write into a
buffer changes only this table, so it adds no ONNX node.

jax2onnx would be the library for this, but its version 0.17 fails on programs that contain diffrax.
"""

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend.core import Jaxpr, Literal
from onnx import helper, numpy_helper

from ._errors import InputError

# The oldest versions with all operators used here, so that most ONNX programs can read the file.
_OPSET, _IR_VERSION = 18, 8

_Equation: TypeAlias = Any  # of a jaxpr; JAX's annotations leave out the shapes of its variables


def to_onnx(
    function: Callable[..., jax.Array],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    output: str,
    description: str,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Writes a function of one example as an ONNX program for a batch of any size.

    **Arguments:**

    - `function`: a function that returns one array.
    - `inputs`: the names of its arguments, and their shapes; they are float32.
    - `output`: the name of its result.
    - `description`: the description in the file.
    - `metadata`: entries of the file's metadata.

    **Returns:**

    The content of an `.onnx` file.

    **Raises:**

    `gorl.InputError` for an operation without an ONNX form here, for dtypes other than float32, int32 and bool, and for
    loops and conditions that depend on the inputs.
    """
    graph = _Graph(batch_of=next(iter(inputs)))
    program = jax.make_jaxpr(function)(*inputs.values())
    (result,) = graph.run(program.jaxpr, program.consts, [graph.input(name, like) for name, like in inputs.items()])
    (like,) = program.out_avals
    tensor = graph.unflattened(_Unknown(graph.elements(result)), like.shape)
    last = helper.make_node("Identity", [tensor], [output], output)
    proto = helper.make_graph(
        [*graph.nodes.values(), last],
        "policy",
        [_tensor_info(name, like) for name, like in inputs.items()],
        [_tensor_info(output, like)],
        list(graph.constants.values()),
    )
    model = helper.make_model(
        proto,
        doc_string=description,
        producer_name="gorl",
        producer_version=importlib.metadata.version("gorl"),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    helper.set_model_props(model, dict(metadata or {}))
    return model.SerializeToString()


def _tensor_info(name: str, like: Any) -> onnx.ValueInfoProto:
    """An input or output for a batch of any size."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(like.dtype), ["batch", *like.shape])


@dataclasses.dataclass(frozen=True, eq=False)
class _Unknown:
    """An array that depends on the inputs."""

    elements: np.ndarray  # the numbers of its elements, in its shape


class _Graph:
    """An ONNX program under construction."""

    def __init__(self, batch_of: str):
        self.batch_of = batch_of  # an input, whose first axis is the batch
        self.nodes: dict[Any, onnx.NodeProto] = {}  # by what they compute, so that nothing is computed twice
        self.constants: dict[Any, onnx.TensorProto] = {}
        # The elements of all tensors are numbered in one sequence, and a tensor's range ends where the next one starts.
        # A tensor is a name, or known values.
        self.tensors: list[str | np.ndarray] = []
        self.starts = [0]

    # --- Nodes and constants ---

    def input(self, name: str, like: jax.ShapeDtypeStruct) -> _Unknown:
        """Flattens an input of the program."""
        tensor = name if len(like.shape) == 1 else self.node("Reshape", name, self.constant([0, math.prod(like.shape)]))
        return self.unknown(tensor, like.shape)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node, and returns the name of its output."""
        computes = (kind, inputs, tuple(attributes.items()))
        if computes not in self.nodes:
            name = f"{kind}_{len(self.nodes)}"
            self.nodes[computes] = helper.make_node(kind, inputs, [name], name, **attributes)
        return self.nodes[computes].output[0]

    def constant(self, value: Any) -> str:
        """Adds a constant, and returns its name."""
        value = np.asarray(value)
        contents = (value.dtype.name, value.shape, value.tobytes())
        if contents not in self.constants:
            self.constants[contents] = numpy_helper.from_array(value, f"constant_{len(self.constants)}")
        return self.constants[contents].name

    # --- Arrays and tensors ---

    def number(self, tensor: str | np.ndarray, size: int) -> np.ndarray:
        """Adds a tensor, and returns the numbers of its elements."""
        self.tensors.append(tensor)
        self.starts.append(self.starts[-1] + size)
        return np.arange(*self.starts[-2:])

    def unknown(self, tensor: str, shape: Sequence[int]) -> _Unknown:
        """The array of a new tensor."""
        return _Unknown(self.number(tensor, math.prod(shape)).reshape(shape))

    def elements(self, array: Any) -> np.ndarray:
        """The numbers of the elements of an array, known or unknown."""
        if isinstance(array, _Unknown):
            return array.elements
        array = np.asarray(array)
        return self.number(array.ravel(), array.size).reshape(array.shape)

    def owners(self, elements: np.ndarray) -> np.ndarray:
        """The index of each element's tensor."""
        return np.asarray(np.searchsorted(self.starts, elements, side="right") - 1)

    def tensor(self, array: Any) -> str:
        """The name of a tensor with the elements of an array. The tensor of a known array has no batch axis."""
        if not isinstance(array, _Unknown):
            return self.constant(np.ravel(array))
        elements, owners = array.elements.ravel(), self.owners(array.elements.ravel())
        parts, columns, size = [], np.empty_like(elements), 0
        for owner in dict.fromkeys(owners.tolist()):
            contents, start, end = self.tensors[owner], *self.starts[owner : owner + 2]
            parts.append(contents if isinstance(contents, str) else self.repeated(contents))
            columns[owners == owner] = elements[owners == owner] + (size - start)
            size += end - start
        whole = parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=1)
        if np.array_equal(columns, np.arange(size)):
            return whole
        return self.node("Gather", whole, self.constant(columns), axis=1)

    def repeated(self, values: np.ndarray) -> str:
        """Known values, repeated for each example."""
        batch = self.node("Shape", self.batch_of, start=0, end=1)
        shape = self.node("Concat", batch, self.constant([values.size]), axis=0)
        return self.node("Expand", self.constant(values), shape)

    def operand(self, array: Any, shape: Sequence[int]) -> str:
        """The tensor of an array, broadcast to a shape unless it has one element, which ONNX broadcasts."""
        if isinstance(array, _Unknown):
            elements = array.elements
            return self.tensor(array if elements.size == 1 else _Unknown(np.broadcast_to(elements, shape)))
        return self.tensor(array if np.size(array) == 1 else np.broadcast_to(array, shape))

    def unflattened(self, array: _Unknown, shape: Sequence[int]) -> str:
        """The tensor of an array, with a shape after the batch axis."""
        tensor = self.tensor(array)
        return tensor if len(shape) == 1 else self.node("Reshape", tensor, self.constant([0, *shape]))

    # --- Equations ---

    def run(self, program: Jaxpr, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Evaluates a program. Known arrays stay arrays, and the others become part of the graph."""
        values = dict(zip((*program.constvars, *program.invars), (*constants, *inputs), strict=True))

        def read(variable: Any) -> Any:
            return np.asarray(variable.val, variable.aval.dtype) if isinstance(variable, Literal) else values[variable]  # pyright: ignore[reportAttributeAccessIssue]

        for equation in _needed(program):
            results = self.apply(equation, [read(variable) for variable in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in program.outvars]

    def apply(self, equation: _Equation, inputs: list[Any]) -> list[Any]:
        """Evaluates one equation."""
        name, parameters = equation.primitive.name, equation.params
        if name in _CALLS:
            inner = parameters[_CALLS[name]]
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
        if not any(isinstance(value, _Unknown) for value in inputs):
            results = equation.primitive.bind(*inputs, **parameters)
            return results if equation.primitive.multiple_results else [results]
        if name in _CONTROL:
            outputs = [variable.aval for variable in equation.outvars]
            return _CONTROL[name](self, inputs, outputs=outputs, **parameters)
        if name in _MOVED and not any(isinstance(value, _Unknown) for value in _without(inputs, _MOVED[name])):
            return self.move(equation, inputs)
        if name in _REWRITTEN:
            function = functools.partial(_REWRITTEN[name], **parameters)
            program = jax.make_jaxpr(function)(*(variable.aval for variable in equation.invars))
            return self.run(program.jaxpr, program.consts, inputs)
        if name not in _LOWERED:
            raise _unsupported(name)
        (variable,) = equation.outvars
        if variable.aval.dtype not in (jnp.float32, jnp.int32, jnp.bool_):
            raise InputError(
                "ONNX is written for arrays of float32, int32 and bool only, and the policy has "
                f"{variable.aval.dtype} ones: convert them, or export to StableHLO."
            )
        return [self.unknown(_LOWERED[name](self, equation, inputs), variable.aval.shape)]

    def move(self, equation: _Equation, inputs: list[Any]) -> list[Any]:
        """Evaluates an equation that only moves elements, by moving their numbers instead."""
        stand_ins, tables, count = list(inputs), [], 0
        for index in range(len(inputs))[_MOVED[equation.primitive.name]]:
            shape = equation.invars[index].aval.shape
            tables.append(self.elements(inputs[index]).ravel())
            # The stand-ins are floats, because a NaN then marks each element that the equation fills in.
            stand_ins[index] = jnp.arange(count, count + math.prod(shape), dtype=jnp.float32).reshape(shape)
            count += math.prod(shape)
        parameters = equation.params | ({"fill_value": np.nan} if "fill_value" in equation.params else {})
        results = equation.primitive.bind(*stand_ins, **parameters)
        results = results if equation.primitive.multiple_results else [results]
        if any(jnp.isnan(result).any() for result in results):
            raise _unsupported(equation.primitive.name)
        table = np.concatenate(tables)
        return [
            self.simplified(table[np.asarray(result, np.int64), ...], variable.aval.dtype)
            for result, variable in zip(results, equation.outvars, strict=True)
        ]

    def simplified(self, elements: np.ndarray, dtype: Any) -> Any:
        """The array of these elements, which is known if every element is."""
        owners = self.owners(elements).ravel().tolist()
        if any(isinstance(self.tensors[owner], str) for owner in owners):
            return _Unknown(elements)
        places = zip(owners, elements.ravel(), strict=True)
        values = [self.tensors[owner][element - self.starts[owner]] for owner, element in places]
        return np.asarray(values, dtype).reshape(elements.shape)


def _needed(program: Jaxpr) -> list[_Equation]:
    """The equations that a program's results need, in order."""
    needed, kept = set(map(id, program.outvars)), []
    for equation in reversed(program.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed.update(map(id, equation.invars))
            kept.append(equation)
    return kept[::-1]


def _without(values: list[Any], left_out: slice) -> list[Any]:
    return [value for index, value in enumerate(values) if index not in range(len(values))[left_out]]


def _unsupported(name: str) -> InputError:
    return InputError(f"ONNX is not written for a policy that computes {name!r}: do without, or export to StableHLO.")


# --- Control flow, on known values ---


def _cond(graph: _Graph, inputs: list[Any], branches: Any, **_: Any) -> list[Any]:
    index, *operands = inputs
    if isinstance(index, _Unknown):
        raise InputError(
            "ONNX is not written for a policy with a condition on its inputs: use jax.numpy.where instead, or export "
            "to StableHLO."
        )
    branch = branches[int(np.clip(index, 0, len(branches) - 1))]
    return graph.run(branch.jaxpr, branch.consts, operands)


def _while(graph: _Graph, inputs: list[Any], cond_jaxpr: Any, body_jaxpr: Any, **parameters: Any) -> list[Any]:
    num_condition, num_body = parameters["cond_nconsts"], parameters["body_nconsts"]
    condition, body = inputs[:num_condition], inputs[num_condition : num_condition + num_body]
    carry = inputs[num_condition + num_body :]
    while True:
        (continues,) = graph.run(cond_jaxpr.jaxpr, cond_jaxpr.consts, [*condition, *carry])
        if isinstance(continues, _Unknown):
            raise InputError(
                "ONNX is not written for a policy with a number of steps that depends on its inputs: fix the number, "
                "or export to StableHLO."
            )
        if not continues:
            return carry
        carry = graph.run(body_jaxpr.jaxpr, body_jaxpr.consts, [*body, *carry])


def _scan(
    graph: _Graph, inputs: list[Any], outputs: list[Any], jaxpr: Any, length: int, reverse: bool, **_: Any
) -> list[Any]:
    # Constants, the carry and the scanned arrays, in this order. Their numbers are read from the shapes, as the
    # parameters that hold them differ between versions of JAX: what is scanned has one more axis outside.
    num_carry = sum(len(outer.shape) == len(inner.shape) for outer, inner in zip(outputs, jaxpr.out_avals, strict=True))
    num_scanned = sum(_rank(outer) > len(inner.shape) for outer, inner in zip(inputs, jaxpr.in_avals, strict=True))
    num_constants = len(inputs) - num_carry - num_scanned
    constants, carry = inputs[:num_constants], inputs[num_constants : num_constants + num_carry]
    columns, rows = inputs[num_constants + num_carry :], []
    for index in reversed(range(length)) if reverse else range(length):
        row = [_Unknown(c.elements[index, ...]) if isinstance(c, _Unknown) else c[index] for c in columns]
        results = graph.run(jaxpr.jaxpr, jaxpr.consts, [*constants, *carry, *row])
        carry = results[:num_carry]
        rows.append(results[num_carry:])
    stacked = []
    for column, like in zip(zip(*rows[:: -1 if reverse else 1], strict=True), jaxpr.out_avals[num_carry:], strict=True):
        if any(isinstance(value, _Unknown) for value in column):
            stacked.append(graph.simplified(np.stack([graph.elements(value) for value in column]), like.dtype))
        else:
            stacked.append(jnp.stack(column))  # by JAX, because random keys have no place in a tensor
    return [*carry, *stacked]


def _rank(value: Any) -> int:
    return value.elements.ndim if isinstance(value, _Unknown) else value.ndim if hasattr(value, "ndim") else 0


# --- Arithmetic: each lowering adds the nodes of an equation, and returns the name of its result ---

_Lowering = Callable[[_Graph, _Equation, list[Any]], str]


def _elementwise(kind: str, **attributes: Any) -> _Lowering:
    def lower(graph: _Graph, equation: _Equation, inputs: list[Any]) -> str:
        shape = equation.outvars[0].aval.shape
        return graph.node(kind, *(graph.operand(value, shape) for value in inputs), **attributes)

    return lower


def _logical(kind: str) -> _Lowering:
    def lower(graph: _Graph, equation: _Equation, inputs: list[Any]) -> str:
        if equation.outvars[0].aval.dtype != jnp.bool_:
            raise _unsupported(equation.primitive.name)
        return _elementwise(kind)(graph, equation, inputs)

    return lower


def _convert(graph: _Graph, equation: _Equation, inputs: list[Any]) -> str:
    to = helper.np_dtype_to_tensor_dtype(equation.outvars[0].aval.dtype)
    return graph.node("Cast", graph.tensor(inputs[0]), to=to)


def _select(graph: _Graph, equation: _Equation, inputs: list[Any]) -> str:
    which, *cases = inputs
    if equation.invars[0].aval.dtype != jnp.bool_:
        raise _unsupported(equation.primitive.name)
    return _elementwise("Where")(graph, equation, [which, *cases[::-1]])


def _reduce(kind: str) -> _Lowering:
    def lower(graph: _Graph, equation: _Equation, inputs: list[Any]) -> str:
        axes = equation.params["axes"]
        elements = np.moveaxis(inputs[0].elements, axes, range(-len(axes), 0))
        kept = math.prod(elements.shape[: elements.ndim - len(axes)])
        matrix = _Unknown(elements.reshape(kept, -1))
        return graph.node(kind, graph.unflattened(matrix, matrix.elements.shape), graph.constant([2]), keepdims=0)

    return lower


def _dot(graph: _Graph, equation: _Equation, inputs: list[Any]) -> str:
    contracted, batched = equation.params["dimension_numbers"]
    arranged = []
    for value, inner, outer in zip(inputs, contracted, batched, strict=True):
        array = value.elements if isinstance(value, _Unknown) else np.asarray(value)
        free = [axis for axis in range(array.ndim) if axis not in (*inner, *outer)]
        sizes = [math.prod(array.shape[axis] for axis in axes) for axes in (outer, free, inner)]
        array = array.transpose(*outer, *free, *inner).reshape(sizes)
        arranged.append(_Unknown(array) if isinstance(value, _Unknown) else array)
    # Weights come second and vectors have no axis of rows, because onnxruntime then takes its fast kernel.
    is_swapped = not isinstance(inputs[0], _Unknown)
    first, second = arranged[::-1] if is_swapped else arranged
    left_shape = num_batches, num_rows, size = first.elements.shape
    if isinstance(second, _Unknown):
        columns = second.elements.swapaxes(1, 2)
        right = graph.unflattened(_Unknown(columns), columns.shape)
    else:
        columns = second.swapaxes(1, 2)
        right = graph.constant(columns if num_batches > 1 else columns[0])
        if num_batches == 1:
            left_shape = (num_rows, size) if num_rows > 1 else (size,)
    product = graph.node("MatMul", graph.unflattened(first, left_shape), right)
    shape = (num_batches, num_rows, columns.shape[2])
    if len(left_shape) > 1:
        product = graph.node("Reshape", product, graph.constant([0, math.prod(shape)]))
    return graph.tensor(_Unknown(graph.unknown(product, shape).elements.swapaxes(1, 2))) if is_swapped else product


# --- Operations by simpler ones ---


def _log1p(x: jax.Array, **_: Any) -> jax.Array:
    """`log(1 + x)`, with a factor that corrects the rounding of `1 + x` for small `x`."""
    rounded = 1 + x
    small = jnp.where(rounded == 1, x, jnp.log(rounded) * x / (rounded - 1))
    return jnp.where(x > 1, jnp.log(rounded), small)


# The parameter that holds the called program.
_CALLS = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
}
_CONTROL = {"cond": _cond, "while": _while, "scan": _scan}
# The inputs whose elements are moved. The others, such as indices, must be known.
_MOVED = {
    "broadcast_in_dim": slice(None),
    "concatenate": slice(None),
    "copy": slice(None),
    "dynamic_slice": slice(0, 1),
    "dynamic_update_slice": slice(0, 2),
    "gather": slice(0, 1),
    "maybe_set": slice(1, 3),  # equinox's write into a buffer
    "pad": slice(None),
    "reshape": slice(None),
    "rev": slice(None),
    "scatter": slice(0, 3, 2),
    "select_n": slice(1, None),
    "slice": slice(None),
    "split": slice(None),
    "squeeze": slice(None),
    "stack": slice(None),
    "stop_gradient": slice(None),
    "tile": slice(None),
    "transpose": slice(None),
    "unstack": slice(None),
}
_REWRITTEN = {
    "clamp": lambda low, x, high: jnp.minimum(jnp.maximum(x, low), high),
    "erfc": lambda x, **_: 1 - jax.lax.erf(x),
    "exp2": lambda x, **_: jax.lax.pow(jnp.full_like(x, 2), x),
    "expm1": lambda x, **_: jnp.tanh(x / 2) * (jnp.exp(x) + 1),
    "integer_pow": lambda x, y: jax.lax.pow(x, jnp.full_like(x, y)),
    "is_finite": lambda x, **_: x - x == 0,
    "log1p": _log1p,
    "ne": lambda x, y, **_: ~(x == y),
    "reduce_and": lambda x, **parameters: jnp.min(x.astype(jnp.int32), parameters["axes"]) == 1,
    "reduce_or": lambda x, **parameters: jnp.max(x.astype(jnp.int32), parameters["axes"]) == 1,
    "rsqrt": lambda x, **_: 1 / jnp.sqrt(x),
    "square": lambda x, **_: x * x,
}
_ELEMENTWISE = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "add": "Add", "add_any": "Add", "asin": "Asin", "asinh": "Asinh",
    "atan": "Atan", "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "div": "Div", "eq": "Equal",
    "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual",
    "log": "Log", "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg",
    "pow": "Pow", "sign": "Sign", "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt", "sub": "Sub", "tan": "Tan",
    "tanh": "Tanh",
}  # fmt: skip
_LOWERED: dict[str, _Lowering] = {
    "and": _logical("And"),
    "convert_element_type": _convert,
    "dot_general": _dot,
    "not": _logical("Not"),
    "or": _logical("Or"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_sum": _reduce("ReduceSum"),
    "rem": _elementwise("Mod", fmod=1),
    "select_n": _select,
    "xor": _logical("Xor"),
    **{name: _elementwise(kind) for name, kind in _ELEMENTWISE.items()},
}
