// The page around the model: recorded answers at first and where there is no WebAssembly, live ones otherwise.
const {pictures, questions, prompts, levels, answers, files, size} = RECORDED
const at = id => document.getElementById(id)
const make = (tag, fields = {}, ...inside) => {
  const e = Object.assign(document.createElement(tag), fields)
  e.append(...inside)
  return e
}
const AUTO = levels
let model = null, loading = null, failed = false, own = null, turn = 0, busy = Promise.resolve()

const why = files === null ? 'These are recorded answers: the model itself is not on this site.'
  : typeof WebAssembly !== 'object' ? 'This browser has no WebAssembly, which the model needs: these are recorded answers.'
  : location.protocol === 'file:' ? 'These are recorded answers. Opened through a server the model runs here: python3 -m http.server'
  : ''

function say(text) { at('status').textContent = text }

function level() { return Number(at('level').value) === AUTO ? null : Number(at('level').value) }

function picture() { return document.querySelector('#shelf :checked') }

function showLevel() {
  at('chosen').textContent = level() ?? 'auto'
  at('level').setAttribute('aria-valuetext', level() === null ? 'auto: the gate decides' : `level ${level()}`)
}

function showBars(weights) {
  const bars = document.querySelectorAll('#bars .bar'), numbers = document.querySelectorAll('#bars .number')
  weights.forEach((w, i) => {
    bars[i].style.width = `${Math.min(100, 100*w)}%`
    numbers[i].textContent = w.toFixed(2)
  })
  at('bars').setAttribute('aria-label', 'Weights of the levels: ' + weights.map((w, i) => `${i}: ${w.toFixed(2)}`).join(', '))
}

function recorded() { // the answer that was written down, if this was asked then
  const asked = answers[`${picture().value}|${questions.indexOf(at('question').value.trim())}`]
  return asked && {text: asked.said[Number(at('level').value)],
                   weights: level() === null ? asked.weights : Array.from({length: levels}, (_, i) => Number(i === level()))}
}

function show({text, weights}) {
  at('answer').textContent = text
  showBars([...weights])
}

async function load() {
  const mb = bytes => (bytes/1e6).toFixed(1)
  const {Model, decode} = await import('./model.js')
  const model = await Model.load(files, done => failed || say(`Loading the model: ${mb(done)} of ${mb(size)} MB`))
  const odd = questions.find((q, i) => String(model.prompt(q).ids) !== String(prompts[i]))
  if (odd) throw new Error(`the tokenizer of this page reads ${JSON.stringify(odd)} in another way`)
  return {decode, model}
}

function start() {
  loading ??= load().then(got => {
    model = got
    say('The model runs in this page.')
    keep().catch(() => {}) // a browser that keeps nothing
  }).catch(e => {
    failed = true // what is still on its way says nothing more
    say(`The model could not be loaded (${e.message}): these are recorded answers.`)
    only()
    throw e
  })
  return loading
}

async function ask() {
  const mine = ++turn, known = recorded()
  if (known) show(known)
  if (why || !at('question').value.trim()) return
  try { await start() } catch { return }
  busy = busy.then(async () => {
    if (mine !== turn) return
    const chosen = picture(), blob = chosen.value === 'own' ? own : await (await fetch(chosen.nextElementSibling.src)).blob()
    const tell = (text, weights) => mine === turn && (known ? showBars([...weights]) : show({text, weights}), true)
    const out = await model.model.answer(await model.decode(blob), at('question').value, level(), {tell})
    if (mine === turn) { show(out); at('answer').dataset.live = mine }
  }).catch(e => say(`That did not work: ${e.message}`))
  await busy
}

async function keep() { // for a time without a network
  if (!navigator.serviceWorker || !window.isSecureContext) return
  await navigator.serviceWorker.register('offline.js')
  await navigator.serviceWorker.ready
  const scripts = ['runtime/ort.js', 'runtime/ort-wasm.js', 'runtime/tokenizers.js']
  const all = ['./', 'index.html', 'page.css', 'page.js', 'model.js', 'recorded.js', ...scripts, ...pictures, ...Object.keys(files)]
  await (await caches.open('aligngpt-live')).addAll(all)
  document.documentElement.dataset.kept = 'yes'
}

function only() { // what was not recorded cannot be asked
  at('own').hidden = at('ask').hidden = true
  at('question').readOnly = true
}

function shelve(value, src, alt) {
  const radio = make('input', {type: 'radio', name: 'picture', value})
  at('shelf').prepend(make('label', {}, radio, make('img', {src, alt})))
  return radio
}

function build() {
  [...pictures].reverse().forEach((src, i, all) => shelve(String(all.length - 1 - i), src, `Picture ${all.length - i}`))
  at('shelf').querySelector('input').checked = true
  for (const q of questions) at('questions').append(make('button', {type: 'button', textContent: q}))
  at('question').value = questions[0]
  Object.assign(at('level'), {max: AUTO, value: AUTO})
  for (let i = 0; i <= AUTO; i++) at('ticks').append(make('span', {textContent: i === AUTO ? 'auto' : i}))
  for (let i = 0; i < levels; i++)
    at('bars').append(make('span', {textContent: `level ${i}`}),
                      make('div', {className: 'track'}, make('div', {className: 'bar'})), make('span', {className: 'number'}))
}

function listen() {
  at('form').addEventListener('submit', e => { e.preventDefault(); ask() })
  at('shelf').addEventListener('change', ask)
  at('level').addEventListener('input', () => { showLevel(); ask() })
  at('questions').addEventListener('click', e => {
    if (e.target.tagName === 'BUTTON') { at('question').value = e.target.textContent; ask() }
  })
  at('file').addEventListener('change', () => {
    if (!(own = at('file').files[0] ?? own)) return
    document.querySelector('#shelf [value=own]')?.parentElement.remove()
    shelve('own', URL.createObjectURL(own), 'Your own picture').checked = true
    ask()
  })
}

function follow() { // inside a page of the site: its light or dark
  try {
    const outer = window.parent !== window && window.parent.document.body
    if (!outer?.dataset.mdColorScheme) return
    const look = () => { document.documentElement.dataset.look = outer.dataset.mdColorScheme === 'slate' ? 'dark' : 'light' }
    new MutationObserver(look).observe(outer, {attributeFilter: ['data-md-color-scheme']})
    look()
  } catch {} // a page of somebody else's
}

build()
listen()
follow()
showLevel()
show(recorded())
if (why) { say(why); only() }
else if (window.parent !== window || navigator.connection?.saveData)
  say(`A recorded answer; the model (${(size/1e6).toFixed(0)} MB) is loaded when you ask.`)
else start().then(ask, () => {})
