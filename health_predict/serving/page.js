// What is tried out on the page: one encounter in words and bars, a file of them, and the request as code.
const known = JSON.parse(document.getElementById('known').textContent);
const byId = name => document.getElementById(name);
const percent = value => (100 * value).toFixed(1) + ' %';

function element(name, text = '', classes = '') {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = classes;
  return made;
}

// The token stays in its field: it is sent with each request and written nowhere.
function headers() {
  const token = known.asks ? byId('token').value.trim() : '';
  return token ? {authorization: `Bearer ${token}`} : {};
}

async function ask(path, body) {
  const answer = await fetch(path, {method: 'POST', headers: {...headers(), 'content-type': 'application/json'}, body});
  return [answer.status, await answer.json()];
}

async function tellModel() {
  const answer = await fetch('health', {headers: headers()});
  const health = await answer.json();
  byId('model').textContent = health.model_version ?
    `Model version ${health.model_version}, ${health.family}, ${health.bento_tag}` : health.detail || 'Model version unknown';
  known.threshold = health.threshold || 0;
}
if (known.asks) byId('token').addEventListener('change', () => tellModel().catch(() => {}));

function inWords(answer) {
  return `A risk of ${percent(answer.probability_score)} of being ${known.happened}: risk group ${answer.risk_group}, ` +
    `${answer.prediction ? 'flagged' : 'not flagged'}. From a risk of ${percent(known.threshold)} on an encounter is flagged.`;
}

function bars(explanation) {
  const rows = explanation.contributions.map(one => {
    const word = (known.words[one.column] || {})[one.value];
    return [`${one.column}: ${one.value ?? 'missing'}${word ? ', ' + word : ''}`, one.contribution];
  });
  if (explanation.others) rows.push(['all other columns', explanation.others]);
  const largest = Math.max(...rows.map(row => Math.abs(row[1])), 1e-9);
  const drawn = element('div', '', 'bars');
  for (const [label, value] of rows) {
    const track = element('div', '', 'track'), bar = element('div', '', value > 0 ? 'bar more' : 'bar');
    const width = 50 * Math.abs(value) / largest;
    bar.style.left = (value > 0 ? 50 : 50 - width) + '%';
    bar.style.width = width + '%';
    track.append(bar);
    drawn.append(element('div', label), element('div', (value > 0 ? '+' : '\u2212') + Math.abs(value).toFixed(2), 'number'), track);
  }
  return drawn;
}

function show(status, answer) {
  const output = byId('answer');
  output.replaceChildren();
  if (status === 200) {
    output.append(element('p', inWords(answer), 'result'));
    if (answer.explanation) {
      output.append(element('p', `What raised the risk (to the right) and what lowered it, in ${answer.explanation.unit}:`), bars(answer.explanation));
    }
  } else {
    output.append(element('p', `The service refused this (${status}):`, 'result'));
  }
  const whole = element('details'), text = element('pre', JSON.stringify(answer, null, 2));
  text.tabIndex = 0;
  whole.append(element('summary', 'The whole answer'), text);
  whole.open = status !== 200;
  output.append(whole);
}

byId('one').addEventListener('submit', async event => {
  event.preventDefault();
  try {
    const options = known.explains ? '&explain=true' : '';
    show(...await ask('predict?log=false' + options, byId('body').value));
  } catch (error) { byId('answer').replaceChildren(element('pre', String(error))); }
});

// A CSV as RFC 4180 has it: cells may be quoted, and hold commas, quotes and line ends then.
function cells(text) {
  const rows = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/g)) {
    rows.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end !== ',') rows.push([]);
  }
  return rows.filter(row => row.length > 1 || row[0]);
}

function encounters(text) {
  if (text.trimStart().startsWith('[')) return JSON.parse(text);
  const [names, ...rows] = cells(text.replace(/^\ufeff/, ''));
  return rows.map(row => Object.fromEntries(names.flatMap((name, at) => {
    if (!known.columns.includes(name)) return [];
    const value = row[at] ?? '';
    return [[name, value === '' || value === '?' ? null : known.amounts.includes(name) ? Number(value) : value]];
  })));
}

byId('many').addEventListener('submit', async event => {
  event.preventDefault();
  const output = byId('answers');
  try {
    const asked = encounters(await byId('file').files[0].text());
    const [status, answers] = await ask('predict/batch?log=false', JSON.stringify(asked));
    output.replaceChildren();
    if (status !== 200) {
      output.append(element('p', `The service refused this (${status}):`, 'result'), element('pre', JSON.stringify(answers, null, 2)));
      return;
    }
    const flagged = answers.filter(answer => answer.prediction).length;
    output.append(element('p', `${flagged} of ${answers.length} encounters are flagged.`, 'result'));
    const lines = [['row', 'probability_score', 'risk_group', 'prediction']].concat(
      answers.map((answer, at) => [at + 1, answer.probability_score, answer.risk_group, answer.prediction]));
    const link = element('a', 'All answers as CSV');
    link.href = URL.createObjectURL(new Blob([lines.map(line => line.join(',')).join('\n') + '\n'], {type: 'text/csv'}));
    link.download = 'answers.csv';
    const paragraph = element('p');
    paragraph.append(link);
    output.append(paragraph);
  } catch (error) { output.replaceChildren(element('pre', String(error))); }
});

function code() {
  const url = new URL('predict', location.href).href;
  let body;
  try { body = JSON.parse(byId('body').value); } catch { return; }
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const token = known.asks ? `-H "authorization: Bearer $(cat token)" ` : '';
  byId('curl').textContent = `curl ${token}-H 'content-type: application/json' -d '${quoted}' '${url}'`;
  const python = Object.entries(body).map(([name, value]) =>
    `    ${JSON.stringify(name)}: ${value === null ? 'None' : value === true ? 'True' : value === false ? 'False' : JSON.stringify(value)},`);
  byId('python').textContent =
    `import requests\n\nencounter = {\n${python.join('\n')}\n}\n` +
    (known.asks ? 'headers = {"authorization": "Bearer " + open("token").read().strip()}\n' : '') +
    `answer = requests.post("${url}", json=encounter, ${known.asks ? 'headers=headers, ' : ''}timeout=10)\n` +
    'answer.raise_for_status()\nprint(answer.json()["probability_score"])';
}
byId('body').addEventListener('input', code);
code();
