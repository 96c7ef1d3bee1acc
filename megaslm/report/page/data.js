// The document of the page, and its packed arrays of numbers.

const NUMBERS = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u1: Uint8Array };

/** The document that the page shows. */
function readDocument() {
  return JSON.parse(document.getElementById("document").textContent);
}

/** The numbers of a packed array, flat; null where the document has none. NaN means: not measured. */
function unpack(packed) {
  if (!packed) return null;
  const bytes = Uint8Array.from(atob(packed.data), (character) => character.charCodeAt(0));
  if (packed.dtype === "f2") return Float32Array.from(new Uint16Array(bytes.buffer), numberOfHalf);
  if (packed.dtype === "bits") {
    const count = packed.shape.reduce((product, size) => product * size, 1);
    return Uint8Array.from({ length: count }, (_, place) => (bytes[place >> 3] >> (place & 7)) & 1);
  }
  return new NUMBERS[packed.dtype](bytes.buffer);
}

/** The number of the 16 bits of an IEEE half. */
function numberOfHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** The last number that was measured; null where there is none. */
function lastOf(numbers) {
  const found = numbers ? numbers.findLast((number) => !Number.isNaN(number)) : undefined;
  return found === undefined ? null : found;
}
