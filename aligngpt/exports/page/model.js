// Asks an exported model in a browser: what example.py of an ONNX folder does, step for step.
import * as ort from './runtime/ort.js'
import {Tokenizer} from './runtime/tokenizers.js'

const BITS = 22 // of the fractions that Pillow counts with
const FILTERS = { // by Pillow's numbers: reach, and the weight of a distance
  1: [3, x => Math.abs(x) < 3 ? sinc(x)*sinc(x/3) : 0],
  2: [1, x => Math.max(0, 1 - Math.abs(x))],
  3: [2, x => (x = Math.abs(x)) < 1 ? (1.5*x - 2.5)*x*x + 1 : x < 2 ? ((-.5*x + 2.5)*x - 4)*x + 2 : 0],
}

function sinc(x) { return x === 0 ? 1 : Math.sin(x*Math.PI)/(x*Math.PI) }

// For each new pixel, the first old one that it is made of, and their weights.
function weights(from, to, [reach, weight]) {
  const scale = from/to, wide = Math.max(scale, 1), out = []
  for (let i = 0; i < to; i++) {
    const centre = (i + .5)*scale
    const first = Math.max(0, Math.trunc(centre - reach*wide + .5))
    const end = Math.min(from, Math.trunc(centre + reach*wide + .5))
    const all = Array.from({length: end - first}, (_, k) => weight((k + first - centre + .5)/wide))
    const sum = all.reduce((a, b) => a + b, 0)
    out.push([first, all.map(w => Math.trunc(w/(sum || 1)*2**BITS + (w < 0 ? -.5 : .5)))])
  }
  return out
}

// One direction of a resize: `line` steps along it, `across` to the next line, in values of three channels.
function along(data, from, to, lines, step, across, outStep, outAcross, filter) {
  const out = new Uint8ClampedArray(to*lines*3)
  weights(from, to, filter).forEach(([first, kernel], i) => {
    for (let l = 0; l < lines; l++) for (let c = 0; c < 3; c++) {
      let sum = 2**(BITS - 1), at = first*step + l*across + c
      for (const w of kernel) { sum += data[at]*w; at += step }
      out[i*outStep + l*outAcross + c] = Math.floor(sum/2**BITS)
    }
  })
  return out
}

// Pillow's resize of an RGB picture, to the bit.
export function resize({data, width, height}, [w, h], resample) {
  const filter = FILTERS[resample]
  if (w !== width) data = along(data, width, w, height, 3, 3*width, 3, 3*w, filter)
  if (h !== height) data = along(data, height, h, w, 3*w, 3, 3*w, 3, filter)
  return {data, width: w, height: h}
}

// A part of a picture, or a picture on a page of one colour; `x` and `y` are where its corner comes from.
function cut({data, width, height}, x, y, w, h, colour) {
  const out = new Uint8ClampedArray(w*h*3)
  for (let i = 0; i < h; i++) for (let j = 0; j < w; j++) for (let c = 0; c < 3; c++) {
    const inside = i + y >= 0 && i + y < height && j + x >= 0 && j + x < width
    out[(i*w + j)*3 + c] = inside ? data[((i + y)*width + j + x)*3 + c] : colour[c]
  }
  return {data: out, width: w, height: h}
}

// The pixels of a file that a browser can decode, upright, on white.
export async function decode(blob, most = 2048) {
  const bitmap = await createImageBitmap(blob, {colorSpaceConversion: 'none'})
  const times = Math.max(1, Math.max(bitmap.width, bitmap.height)/most)
  const width = Math.max(1, Math.round(bitmap.width/times)), height = Math.max(1, Math.round(bitmap.height/times))
  const canvas = Object.assign(document.createElement('canvas'), {width, height})
  const paper = canvas.getContext('2d', {willReadFrequently: true})
  paper.fillStyle = '#fff'
  paper.fillRect(0, 0, width, height)
  paper.drawImage(bitmap, 0, 0, width, height)
  bitmap.close()
  const four = paper.getImageData(0, 0, width, height).data
  return {data: Uint8ClampedArray.from({length: width*height*3}, (_, i) => four[(i - i % 3)/3*4 + i % 3]), width, height}
}

const round = Math.fround

export class Model {
  // `files` says what lies where and how large it is; `loaded` hears how many bytes are there.
  static async load(files, loaded = () => {}) {
    let done = 0
    const get = async path => {
      const answer = await fetch(path)
      if (!answer.ok) throw new Error(`${path}: ${answer.status}`)
      const parts = [], reader = answer.body.getReader()
      for (let piece; !(piece = await reader.read()).done;) {
        parts.push(piece.value)
        loaded(done += piece.value.length)
      }
      const all = new Uint8Array(await new Blob(parts).arrayBuffer())
      if (files[path] !== all.length) throw new Error(`${path}: ${all.length} bytes, not ${files[path]}`)
      return all
    }
    const paths = Object.keys(files), bytes = await Promise.all(paths.map(get))
    const file = Object.fromEntries(paths.map((path, i) => [path, bytes[i]]))
    const json = path => JSON.parse(new TextDecoder().decode(file[path]))
    const wasmPaths = {mjs: new URL('runtime/ort-wasm.js', import.meta.url).href}
    Object.assign(ort.env.wasm, {wasmBinary: file['runtime/ort.wasm'].buffer, wasmPaths, numThreads: 1, proxy: false})
    const model = new Model(json('model/export.json'), json('model/tokenizer.json'))
    for (const name of Object.keys(model.about.graphs))
      model.graphs[name] = await ort.InferenceSession.create(file[`model/${name}.onnx`], {executionProviders: ['wasm']})
    return model
  }

  constructor(about, tokenizer) {
    const plain = {...tokenizer, added_tokens: tokenizer.added_tokens.filter(t => !t.special)}
    this.about = about
    this.graphs = {}
    this.writer = new Tokenizer(tokenizer, {clean_up_tokenization_spaces: false})
    this.reader = new Tokenizer(plain, {}) // what a person types is never a control token
  }

  async run(name, ...tensors) {
    const {inputs, outputs} = this.about.graphs[name]
    const out = await this.graphs[name].run(Object.fromEntries(inputs.map((n, i) => [n, tensors[i]])))
    return outputs.map(n => out[n])
  }

  pixels(picture) {
    const rules = this.about.picture, side = Math.max(picture.width, picture.height)
    if (rules.pad)
      picture = cut(picture, -Math.floor((side - picture.width)/2), -Math.floor((side - picture.height)/2), side, side,
                    rules.pad)
    const least = Math.min(picture.width, picture.height)
    const size = rules.short ? [picture.width, picture.height].map(s => Math.trunc(rules.short*s/least)) : rules.size
    const [w, h] = rules.crop
    picture = resize(picture, size, rules.resample)
    const {data} = cut(picture, Math.floor((size[0] - w)/2), Math.floor((size[1] - h)/2), w, h, [0, 0, 0])
    const out = new Float32Array(3*w*h)
    for (let c = 0; c < 3; c++) for (let i = 0; i < w*h; i++)
      out[c*w*h + i] = round(round(round(data[3*i + c]*rules.scale) - round(rules.mean[c]))/round(rules.std[c]))
    return new ort.Tensor('float32', out, [1, 3, h, w])
  }

  prompt(question) {
    const ids = [], read = []
    for (const p of this.about.prompt) {
      const text = (p.text ?? '').replace('{question}', () => question.trim())
      const more = text ? this.reader.encode(text, {add_special_tokens: false}).ids : Array(p.times).fill(p.token)
      ids.push(...more)
      read.push(...more.map(() => p.read))
    }
    return {ids, read}
  }

  embed(ids) {
    return this.run('text', new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]))
  }

  // `level` is a number, or null for the gate; `tell` hears the text so far and the weights, and may end it by `false`.
  async answer(picture, question, level = null, {longest = 128, tell = () => {}} = {}) {
    const {about} = this, {ids, read} = this.prompt(question), wide = about.width, said = []
    const [image] = await this.run('picture', this.pixels(picture))
    let [embeds] = await this.embed(ids)
    const rows = embeds.data, heard = read.flatMap((r, i) => r ? [...rows.subarray(i*wide, (i + 1)*wide)] : [])
    const given = Float32Array.from({length: about.levels}, (_, i) => Number(i === level))
    const [weights, align] = await this.run('gate', image, new ort.Tensor('float32', heard, [heard.length/wide, wide]),
                                            new ort.Tensor('float32', given, [about.levels]))
    let seen = 0
    ids.forEach((id, i) => {
      if (id === about.align_token) rows.set(align.data, i*wide)
      if (id === about.image_token) rows.set(image.data.subarray(seen*wide, ++seen*wide), i*wide)
    })
    let past = about.cache.map(shape => new ort.Tensor('float32', new Float32Array(0), shape)), logits
    const text = () => this.writer.decode(said.filter(i => !about.stops.includes(i)), {skip_special_tokens: true}).trim()
    while (said.length < longest && !about.stops.includes(said.at(-1))) {
      [logits, ...past] = await this.run('decoder', embeds, ...past)
      said.push(logits.data.reduce((best, v, i, all) => v > all[best] ? i : best, 0))
      if (tell(said.length > 1 ? text() : '', weights.data) === false) break
      ;[embeds] = await this.embed(said.slice(-1))
    }
    return {text: text(), weights: [...weights.data], said}
  }
}
