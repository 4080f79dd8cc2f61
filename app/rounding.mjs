// Corrects how the fast runtime rounds, in its WebAssembly file.
//
// llama.cpp turns the values that a matrix is multiplied with into whole numbers of 8 bits. In wllama 2.2.1 two functions
// (quantize_row_q8_0 and quantize_row_q8_1) cut off the fraction instead of rounding, which changes what models answer.
// The one instruction that is missing, f32x4.nearest, is put in front of each conversion.

const CODE_SECTION = 10;
const NEAREST = [0xfd, 0x6a];
const TO_INTEGERS = [0xfd, 0xf8, 0x01]; // i32x4.trunc_sat_f32x4_s
const ABSOLUTE = [0xfd, 0xe0, 0x01]; // f32x4.abs

/** Of the conversions in each of the two functions, which take the greatest absolute value of as many vectors first. */
const CONVERSIONS = 8;
const FUNCTIONS = 2;

/** Returns the file with both functions corrected; fails if it is not the file that this was made for. */
export function roundToNearest(file) {
  const sections = [file.subarray(0, 8)];
  let corrected = 0;
  for (let place = 8; place < file.length; ) {
    const id = file[place];
    const [size, start] = readNumber(file, place + 1);
    let content = file.subarray(start, start + size);
    if (id === CODE_SECTION) {
      const bodies = functionBodies(content).map((body) => {
        if (!cutsOff(body)) return body;
        corrected++;
        return withNearest(body);
      });
      content = Buffer.concat([writeNumber(bodies.length), ...bodies.flatMap((body) => [writeNumber(body.length), body])]);
    }
    sections.push(Buffer.from([id]), writeNumber(content.length), content);
    place = start + size;
  }
  const result = Buffer.concat(sections);
  if (corrected !== FUNCTIONS || !WebAssembly.validate(result)) {
    throw new Error(`${corrected} functions of the fast runtime were corrected instead of ${FUNCTIONS}: look at app/rounding.mjs`);
  }
  return result;
}

function cutsOff(body) {
  const found = [TO_INTEGERS, ABSOLUTE, NEAREST].map((code) => places(body, code).length);
  return found.join() === [CONVERSIONS, CONVERSIONS, 0].join();
}

function withNearest(body) {
  const parts = [];
  let from = 0;
  for (const place of places(body, TO_INTEGERS)) {
    parts.push(body.subarray(from, place), Buffer.from(NEAREST));
    from = place;
  }
  return Buffer.concat([...parts, body.subarray(from)]);
}

function places(body, code) {
  const found = [];
  for (let at = body.indexOf(Buffer.from(code)); at >= 0; at = body.indexOf(Buffer.from(code), at + 1)) found.push(at);
  return found;
}

function functionBodies(content) {
  const [count, first] = readNumber(content, 0);
  const bodies = [];
  let place = first;
  for (let index = 0; index < count; index++) {
    const [size, start] = readNumber(content, place);
    bodies.push(content.subarray(start, start + size));
    place = start + size;
  }
  return bodies;
}

/** A number in LEB128, and where it ends. */
function readNumber(bytes, from) {
  let value = 0;
  for (let place = from, shift = 0; ; place++, shift += 7) {
    value += (bytes[place] & 127) * 2 ** shift;
    if (bytes[place] < 128) return [value, place + 1];
  }
}

function writeNumber(value) {
  const bytes = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Buffer.from([...bytes, value]);
}
