// The front end of the chat: it catches keys, drops and pastes, sends them to Python, and shows the HTML that comes
// back. An anywidget module, written by hand; it needs no build and loads nothing from elsewhere.

const MAX = 4 << 20, SIDE = 2048; // larger files are made smaller before they travel
const PICTURE = `<svg viewBox="0 0 24 24" width="18" height="18" fill="none" stroke="currentColor" stroke-width="1.8">
  <rect x="3" y="4" width="18" height="16" rx="2"/><circle cx="8.5" cy="9.5" r="1.6"/>
  <path d="M4 18l5.5-5.5 3.5 3.5 3-3 4.5 4.5"/></svg>`;

function tag(name, attrs = {}, ...kids) { // an element
  const e = Object.assign(document.createElement(name), attrs);
  e.append(...kids);
  return e;
}

function button(text, title, onclick, className = '') {
  const b = tag('button', { type: 'button', title, onclick, className }, text);
  b.setAttribute('aria-label', title);
  return b;
}

async function smaller(file) { // a picture of at most SIDE pixels
  const bmp = await createImageBitmap(file), k = Math.min(1, SIDE / Math.max(bmp.width, bmp.height));
  const c = tag('canvas', { width: Math.round(bmp.width * k), height: Math.round(bmp.height * k) });
  c.getContext('2d').drawImage(bmp, 0, 0, c.width, c.height);
  return new Promise(ok => c.toBlob(ok, 'image/jpeg', .92));
}

async function pack(file) { // a file as {name, buffer, url}
  let blob = file;
  if (file.size > MAX) {
    try { blob = await smaller(file); }
    catch { blob = file.slice(0, 1024); } // not a picture: Python says so
  }
  return { name: file.name, buffer: await blob.arrayBuffer(), url: URL.createObjectURL(blob) };
}

async function copy(text) {
  try { await navigator.clipboard.writeText(text); }
  catch { // a page without https has no clipboard
    const t = tag('textarea', { value: text });
    document.body.append(t);
    t.select();
    document.execCommand('copy');
    t.remove();
  }
}

function render({ model, el }) {
  let tray = [], sent = null; // pictures that wait; the last message, in case it fails

  // What one sees
  const log = tag('div', { className: 'agpt-log' });
  const examples = tag('div', { className: 'agpt-examples' }), shelf = tag('div', { className: 'agpt-tray' });
  const input = tag('textarea', { rows: 1, placeholder: 'Ask something. Drop or paste a picture.' });
  const file = tag('input', { type: 'file', accept: 'image/*', multiple: true, hidden: true });
  const attach = button('', 'Add a picture', () => file.click());
  const go = button('Send', 'Send', () => model.get('busy') ? stop() : send(), 'agpt-send');
  const clear = button('Clear', 'Clear the conversation', () => model.send({ type: 'clear' }));
  const composer = tag('div', { className: 'agpt-compose' }, attach, input, go, clear);
  const said = tag('div', { className: 'agpt-said', hidden: true });
  const root = tag('div', { className: 'agpt' }, log, examples, shelf, said, composer, file);
  said.setAttribute('role', 'alert');
  attach.innerHTML = PICTURE;
  input.setAttribute('aria-label', 'Message');
  log.setAttribute('role', 'log');
  log.setAttribute('aria-live', 'polite');
  root.dataset.lmSuppressShortcuts = 'true'; // keys belong to us, not to JupyterLab
  el.append(root);

  // To Python
  function send() {
    const text = input.value, pictures = tray.map(t => t.example ?? t.name);
    if (model.get('busy') || (!text.trim() && !tray.length)) return;
    model.send({ type: 'send', text, pictures }, undefined, tray.filter(t => t.buffer).map(t => t.buffer));
    sent = { text, tray };
    compose('', []);
  }
  function stop() { model.send({ type: 'stop' }); }

  // The composer
  function compose(text, pictures) {
    input.value = text;
    tray = pictures;
    drawTray();
    grow();
  }
  async function add(files) {
    const others = [...files].filter(f => f.type && !f.type.startsWith('image/'));
    for (const f of files) if (!others.includes(f)) tray.push(await pack(f));
    drawTray();
    say(others.length ? others.map(f => f.name).join(', ') + ': not a picture. Show a PNG, JPEG, WEBP or GIF.' : '');
  }
  function say(text) { // what is wrong with what was dropped, until something else is
    said.textContent = text;
    said.hidden = !text;
  }
  function grow() {
    input.style.height = 'auto';
    input.style.height = Math.min(160, input.scrollHeight + 2) + 'px';
  }
  function tile(t) { // a picture; the name of what the browser cannot show
    const onerror = e => e.target.replaceWith(tag('em', { textContent: t.name }));
    return tag('img', { src: t.url, alt: t.name, onerror });
  }
  function drawTray() {
    const remove = i => () => { tray.splice(i, 1); drawTray(); };
    shelf.replaceChildren(...tray.map((t, i) => tag('span', {}, tile(t), button('×', 'Remove ' + t.name, remove(i)))));
  }
  function drawExamples() {
    const choose = (x, i) => () => {
      tray.push({ name: 'example ' + (i + 1), url: x.url, example: i });
      if (x.question) input.value = x.question;
      drawTray();
      input.focus();
    };
    examples.style.display = model.get('examples').length ? '' : 'none';
    examples.replaceChildren(...model.get('examples').map((x, i) => {
      const alt = 'Example picture ' + (i + 1);
      return tag('button', { type: 'button', title: x.question || alt, onclick: choose(x, i) },
        tag('img', { src: x.url, alt }));
    }));
  }

  // The conversation
  function tools(msg, last, i) {
    const bar = tag('span', { className: 'agpt-tools' });
    bar.append(button('Copy', 'Copy the answer', e => {
      copy(msg.dataset.text);
      e.target.textContent = 'Copied';
      setTimeout(() => e.target.textContent = 'Copy', 1200);
    }));
    if (last) bar.append(button('Regenerate', 'Regenerate the answer', () => model.send({ type: 'again' })));
    bar.append(button('Why?', 'Explain the answer', () => model.get('busy') || model.send({ type: 'why', index: i })));
    (msg.querySelector('.agpt-foot') ?? msg).append(bar);
  }
  function nearEnd() { return log.scrollHeight - log.scrollTop - log.clientHeight < 60; }
  function drawLog() {
    const near = nearEnd();
    log.innerHTML = model.get('log').join('') || `<div class="agpt-hint">${model.get('hint')}</div>`;
    const answers = [...log.querySelectorAll('.agpt-model')];
    answers.forEach((m, i) => tools(m, i === answers.length - 1 && !model.get('busy'), i));
    drawLive(near);
  }
  function drawLive(near = nearEnd()) {
    log.querySelector('.agpt-live')?.remove();
    if (model.get('live')) log.insertAdjacentHTML('beforeend', model.get('live'));
    if (!near) return;
    const last = log.lastElementChild, why = last?.classList.contains('agpt-why'); // a long one is read from its start
    log.scrollTop = why ? last.offsetTop - log.offsetTop - 8 : log.scrollHeight;
  }
  function drawBusy() {
    const busy = model.get('busy');
    go.textContent = busy ? 'Stop' : 'Send';
    go.title = busy ? 'Stop the answer' : 'Send';
    go.setAttribute('aria-label', go.title);
    drawLog();
  }

  // What the user does
  function quiet(e) { e.preventDefault(); e.stopPropagation(); }
  input.addEventListener('input', grow);
  input.addEventListener('keydown', e => {
    e.stopPropagation();
    if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) { e.preventDefault(); send(); }
    if (e.key === 'Escape') stop();
  });
  input.addEventListener('paste', e => {
    const files = [...e.clipboardData.files];
    if (files.length) { e.preventDefault(); add(files); }
  });
  file.addEventListener('change', () => add([...file.files]).then(() => file.value = ''));
  for (const name of ['dragenter', 'dragover'])
    root.addEventListener(name, e => { quiet(e); root.classList.add('agpt-over'); });
  root.addEventListener('dragleave', e => {
    if (!root.contains(e.relatedTarget)) root.classList.remove('agpt-over');
  });
  root.addEventListener('drop', e => {
    quiet(e);
    root.classList.remove('agpt-over');
    add([...e.dataTransfer.files]);
  });

  // From Python
  function failed(m) { // the message goes back into the composer, if nothing else was begun there
    if (m.type !== 'failed' || !sent || input.value || tray.length) return;
    compose(sent.text, sent.tray);
    sent = null;
  }
  const watch = {
    'change:log': drawLog,
    'change:live': () => drawLive(),
    'change:busy': drawBusy,
    'change:examples': drawExamples,
    'msg:custom': failed,
  };
  for (const [k, f] of Object.entries(watch)) model.on(k, f);
  drawExamples();
  drawBusy();
  return () => { for (const [k, f] of Object.entries(watch)) model.off(k, f); };
}

export default { render };
