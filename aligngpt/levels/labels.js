// The front end of blind labelling: it shows a pair, catches a key or a click, and tells Python. An anywidget module
// and, with a model that asks the server, the page of `aligngpt label`; it loads nothing from elsewhere.

function tag(name, attrs = {}, ...kids) {
  const e = Object.assign(document.createElement(name), attrs);
  e.append(...kids);
  return e;
}

function render({ model, el }) {
  const box = tag('div', { tabIndex: 0, className: 'agpt-label' });
  box.style.cssText = 'max-width:640px;outline:none;font:15px/1.5 system-ui,sans-serif';
  box.dataset.lmSuppressShortcuts = 'true'; // JupyterLab's own keys
  const say = (answer) => {
    const { key, done } = model.get('state');
    model.send({ key, says: answer, done });
  };
  const draw = () => {
    const s = model.get('state'), picture = tag('img', { alt: '' }), caption = tag('p', { textContent: s.caption || '' });
    picture.style.cssText = 'max-width:100%;max-height:55vh;min-width:min(15em,100%);border-radius:6px';
    caption.style.cssText = 'font-size:1.25em;white-space:pre-wrap;overflow-wrap:anywhere;min-height:2.5em';
    if ((s.picture || '').startsWith('data:image/')) picture.src = s.picture;
    const buttons = s.answers.map(([answer, words, keys]) => {
      const b = tag('button', { type: 'button', onclick: () => say(answer) }, `${words} (${keys[0]})`);
      b.dataset.says = answer;
      b.style.cssText = 'margin:0 .4em .4em 0;padding:.45em .9em';
      b.disabled = s.finished && answer !== 'undo';
      return b;
    });
    const bar = tag('progress', { max: s.of, value: s.done }), count = tag('span', {}, ` ${s.done} of ${s.of}, ${s.who}`);
    const report = tag('pre', { textContent: s.report || '' }), note = tag('p', { textContent: s.note || '' });
    const pair = s.finished ? [report] : [picture, caption];
    box.replaceChildren(...pair, tag('div', {}, ...buttons), note, tag('div', {}, bar, count));
  };
  box.addEventListener('keydown', (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.repeat) return;
    const hit = model.get('state').answers.find(([, , keys]) => keys.includes(e.key));
    if (!hit) return;
    e.preventDefault();
    e.stopPropagation();
    say(hit[0]);
  });
  model.on('change:state', draw);
  draw();
  el.append(box);
  box.focus();
}

export default { render };
