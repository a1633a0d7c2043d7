"""Array types that every module shares."""

from typing import TypeAlias

from jaxtyping import Array, Float, Int, Key

# A hyperparameter is a plain number, or an array of them where a batch trains in one `vmap`.
Real: TypeAlias = float | Float[Array, "..."]
Integer: TypeAlias = int | Int[Array, "..."]

RandomKey: TypeAlias = Key[Array, ""]
RandomKeys: TypeAlias = Key[Array, "*seeds"]
