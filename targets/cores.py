"""Processor cores: what a compiler must be told, and what a schedule may use. Data only."""

from __future__ import annotations

from dataclasses import dataclass

BARE_METAL = "arm-none-eabi"
AARCH64 = "aarch64-linux-gnu"
ARMV7 = "arm-linux-gnueabihf"
X86_64 = "x86_64-linux-gnu"

# Products are contracted to fused multiply-adds wherever the core has them, on the host too (-mfma): GCC
# takes the same decision on the same C for all, so that host and board round alike. Nothing is reassociated.
# Measured with GCC 12 on convolutions, SGD, Adam and dot products: host and Cortex-M7 agree to the last bit,
# except that x86's loop vectoriser splits the products of a sum from their additions; hence it is off there.
# expf and logf of newlib and glibc differ in the last bit: a library that needs them brings its own.
_MATH = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_NO_CONTRACTION = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


@dataclass(frozen=True)
class Core:
    """One processor core.

    Attributes
    ----------
    name
        The compiler's ``-mcpu`` name; ``host`` for this machine.
    triple
        The toolchain: ``arm-none-eabi`` for Cortex-M, a GNU/Linux triple for others.
    cflags
        Code generation: instruction set, floating-point unit, rounding.
    fpu
        ``"none"``, ``"single"`` or ``"double"``: precision of the floating-point unit.
    features
        Of ``thumb2`` (all of Armv7-M beside Armv6-M), ``dsp`` (16-bit SIMD in general registers), ``v8m`` (Armv8-M),
        ``mve``, ``neon``, ``avx2``, ``dotprod``, ``fma``, ``minmax`` (instructions for fminf and fmaxf).
    mpu
        ``"none"``, ``"v7m"`` or ``"v8m"``: kind of memory protection unit that the runtime drives.
    llvm_attributes
        Features that LLVM's own description of the core lacks or has too many of.
    """

    name: str
    triple: str
    cflags: tuple[str, ...]
    fpu: str = "none"
    features: frozenset[str] = frozenset()
    mpu: str = "none"
    llvm_attributes: tuple[str, ...] = ()

    @property
    def is_microcontroller(self) -> bool:
        """True for Cortex-M: no operating system, firmware is linked with start-up code."""
        return self.triple == BARE_METAL

    def runs_code_for(self, other: Core) -> bool:
        """Return whether code that was compiled for `other` may run here: its system, its float ABI, no feature that lacks."""
        same_abi = self.triple == other.triple and (self.fpu == "none") == (other.fpu == "none")
        has_fpu = _FPUS.index(other.fpu) <= _FPUS.index(self.fpu)
        return same_abi and has_fpu and other.features <= self.features

    def has_instructions_of(self, other: Core) -> bool:
        """Return whether both cores have the same instructions, so that a program takes as many on one as on the other."""
        return self.runs_code_for(other) and other.runs_code_for(self)


_FPUS = ("none", "single", "double")  # each runs what is compiled for those before it


def _cortex_m(name: str, fpu: str, mpu: str, *features: str, flags: tuple[str, ...] = ()) -> Core:
    float_abi = "soft" if fpu == "none" else "hard"
    rounding = _MATH if "fma" in features else _NO_CONTRACTION
    cflags = (f"-mcpu={name}", "-mthumb", f"-mfloat-abi={float_abi}", *flags, *rounding)
    return Core(name, BARE_METAL, cflags, fpu, frozenset(features), mpu)


_V7EM = ("thumb2", "dsp")
_TABLE = (
    _cortex_m("cortex-m0plus", "none", "none"),
    _cortex_m("cortex-m3", "none", "v7m", "thumb2"),
    _cortex_m("cortex-m4", "single", "v7m", *_V7EM, "fma", flags=("-mfpu=fpv4-sp-d16",)),
    _cortex_m("cortex-m7", "single", "v7m", *_V7EM, "fma", "minmax", flags=("-mfpu=fpv5-sp-d16",)),
    _cortex_m("cortex-m33", "single", "v8m", *_V7EM, "v8m", "fma", "minmax", flags=("-mfpu=fpv5-sp-d16",)),
    _cortex_m("cortex-m55", "double", "v8m", *_V7EM, "v8m", "fma", "minmax", "mve", flags=("-mfpu=auto",)),
    Core(
        "cortex-a7",
        ARMV7,
        ("-mcpu=cortex-a7", "-mfpu=neon-vfpv4", "-mfloat-abi=hard", *_MATH),
        "double",
        frozenset({"neon", "fma"}),
        # LLVM splits fused multiply-adds on this core, for speed; GCC fuses them, and so do all other boards.
        llvm_attributes=("-slowfpvfmx",),
    ),
    Core("cortex-a53", AARCH64, ("-mcpu=cortex-a53", *_MATH), "double", frozenset({"neon", "fma", "minmax"})),
    Core("cortex-a57", AARCH64, ("-mcpu=cortex-a57", *_MATH), "double", frozenset({"neon", "fma", "minmax"})),
    Core("cortex-a72", AARCH64, ("-mcpu=cortex-a72", *_MATH), "double", frozenset({"neon", "fma", "minmax"})),
    Core(
        "cortex-a76",
        AARCH64,
        ("-mcpu=cortex-a76", *_MATH),
        "double",
        frozenset({"neon", "fma", "minmax", "dotprod"}),
    ),
    Core(
        "x86-64",
        X86_64,
        ("-march=x86-64", "-mfma", "-fno-tree-loop-vectorize", *_MATH),
        "double",
        frozenset({"fma"}),
    ),
    # For speed: 8 floats at a time. It rounds like the others, but sums of weight gradients run in 8 parts.
    Core("x86-64-v3", X86_64, ("-march=x86-64-v3", *_MATH), "double", frozenset({"fma", "avx2"})),
    Core(
        "x86-64-baseline", X86_64, ("-march=x86-64", "-fno-tree-loop-vectorize", *_NO_CONTRACTION), "double"
    ),
)

CORES: dict[str, Core] = {core.name: core for core in _TABLE}


def cores_run_by(core: Core) -> tuple[str, ...]:
    """Return the names of the cores whose compiled code runs on `core`, its own among them."""
    return tuple(other.name for other in CORES.values() if core.runs_code_for(other))


# Other names of the same cores, as compilers and data sheets write them.
ALIASES: dict[str, str] = {
    "cortex-m0+": "cortex-m0plus",
    "cortex-m4f": "cortex-m4",
    "cortex-m33f": "cortex-m33",
}
