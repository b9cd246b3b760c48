// The page's own part: photos are sent one by one to /page/photos, looked at there, and shown before and after; what
// is different with clips is in clips.js.
// Strength is mixed here at once, by the opacity of the result; where maps restore the photo, the server's very answer
// follows a moment later without another look of the network. Files stay at hand: a server that was started again
// gets them once more without being asked to.
(() => {
  "use strict";
  const limits = window.fairweatherLimits, clips = window.fairweatherClips;
  const AT_ONCE = 2, SOON = 250, AWAY = 2000, MOST_ENLARGED = 2, MOST_LOST = 4;
  const IMAGES = [".fw-before", ".fw-after", ".fw-map"];
  const state = { photos: [], current: -1, model: "auto", weather: "auto", guard: true, strength: 1,
                  place: 0.5, map: false, full: false, under: 0 };
  let root, timer;

  const one = (selector, base = document) => base.querySelector(selector);
  const shown = () => state.photos[state.current];
  const percent = (value) => `${Math.round(100 * value)} %`;
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const say = (text) => { one("#fw-said").textContent = text; };

  function query(photo, strength) {
    const { model, weather, guard } = photo.asked;
    const told = new URLSearchParams({ model, weather: model === "auto" ? weather : "auto", guard });
    if (strength !== undefined) told.set("strength", strength);
    return told;
  }
  const url = (photo, what, strength) => `/page/photos/${photo.token}/${what}?${query(photo, strength)}`;

  // ---- photos come in -------------------------------------------------------------------------------------------

  function add(files) {
    const fresh = [...files].map((file) => ({ file, name: file.name || "photo", status: "waiting", said: "waiting" }));
    if (!fresh.length) return;
    state.photos.push(...fresh);
    if (!shown() || shown().status !== "ready") state.current = state.photos.length - fresh.length;
    one(".fw-empty", root).hidden = true;
    one(".fw-work", root).hidden = false;
    draw();
    next();
  }

  async function example(name) {
    const answer = await fetch(`/page/examples/${encodeURIComponent(name)}`);
    add([new File([await answer.blob()], name, { type: "image/jpeg" })]);
  }

  function next() {
    while (state.under < AT_ONCE) {
      const photo = state.photos.find((one) => one.status === "waiting");
      if (!photo) return;
      state.under += 1;
      restore(photo).catch((error) => wrong(photo, String(error))).finally(() => { state.under -= 1; next(); });
    }
  }

  async function restore(photo) {
    photo.status = "working";
    if (photo.file.size > limits.bytes) {
      return wrong(photo, `${photo.name}: is larger than ${limits.bytes / 1e6} MB, the most that is taken here; make it smaller`);
    }
    for (;;) {
      photo.asked = { model: state.model, weather: state.weather, guard: state.guard };
      const asked = photo.asked;
      if (!photo.token) {
        const sent = await ask(photo, "POST", `/page/photos?name=${encodeURIComponent(photo.name)}`, photo.file);
        if (!sent) return;
        photo.token = sent.token;
      }
      tell(photo, "looking for the weather and taking it out");
      const found = await ask(photo, "POST", url(photo, "look"));
      if (found === "gone") { photo.token = null; continue; }
      if (!found) return;
      if (asked.model !== state.model || asked.weather !== state.weather || asked.guard !== state.guard) continue;
      photo.found = found;
      photo.status = "ready";
      photo.said = "";
      say(`${photo.name}: ${verdict(found)}`);
      return draw();
    }
  }

  // The answer's JSON; "gone" where the photo has to be sent again; nothing where the photo was refused.
  async function ask(photo, method, where, body) {
    for (;;) {
      const answer = await request(photo, method, where, body).catch(() => null);
      if (!state.photos.includes(photo)) return void clips.unwanted(answer?.told);
      if (answer === null) {
        tell(photo, "the server does not answer; waiting for it");
        await pause(AWAY);
      } else if (answer.status === 503) {
        tell(photo, "the server is busy; waiting for a place");
        await pause(1000 * (answer.retry || 5));
      } else if (answer.status === 404 && answer.told.error?.kind === "gone") {
        return "gone";
      } else if (answer.status >= 400) {
        wrong(photo, answer.told.error?.message || `the server answered ${answer.status}`);
        return null;
      } else {
        return answer.told;
      }
    }
  }

  function request(photo, method, where, body) {
    return new Promise((done, failed) => {
      const call = new XMLHttpRequest();
      call.open(method, where);
      if (body) {
        call.setRequestHeader("Content-Type", "application/octet-stream");
        call.upload.onprogress = (now) => tell(photo, `sending, ${percent(now.loaded / now.total)}`);
      }
      call.onload = () => {
        let told = {};
        try { told = JSON.parse(call.responseText); } catch { /* not ours: a proxy's page */ }
        done({ status: call.status, retry: Number(call.getResponseHeader("Retry-After")), told });
      };
      call.onerror = call.onabort = call.ontimeout = () => failed(new Error("no answer"));
      call.send(body || null);
    });
  }

  function tell(photo, text) {
    photo.said = text;
    if (photo === shown()) status();
  }

  function wrong(photo, message) {
    photo.status = "wrong";
    photo.said = message;
    say(message);
    draw();
  }

  function remove(photo) {
    const at = state.photos.indexOf(photo);
    state.photos.splice(at, 1);
    clips.remove(photo);
    if (photo.token) fetch(`/page/photos/${photo.token}`, { method: "DELETE" }).catch(() => null);
    if (state.current > at || state.current >= state.photos.length) state.current -= 1;
    if (state.current < 0 && state.photos.length) state.current = 0;
    one(".fw-empty", root).hidden = state.photos.length > 0;
    one(".fw-work", root).hidden = !state.photos.length;
    draw();
  }

  // ---- what is drawn ----------------------------------------------------------------------------------------------

  function draw() {
    strip();
    status();
    found();
    const photo = shown(), ready = photo && photo.status === "ready";
    one(".fw-stage", root).classList.toggle("fw-ready", Boolean(ready));
    one(".fw-name", root).textContent = photo ? photo.name + (photo.found ? `, ${photo.found.width} × ${photo.found.height}` : "") : "";
    pressed("clear", !state.map); pressed("map", state.map);
    pressed("fit", !state.full); pressed("full", state.full);
    one(".fw-legend", root).hidden = !(ready && state.map);
    one(".fw-tag-after", root).textContent = state.map ? "haze" : "after";
    if (ready) {
      source(".fw-before", `/page/photos/${photo.token}/before`);
      source(".fw-after", photo.found.parts.length ? url(photo, "after", 1) : `/page/photos/${photo.token}/before`);
      if (state.map) source(".fw-map", url(photo, "map"));
    }
    strength(100 * state.strength);
    layout();
  }

  function source(selector, where) {
    const image = one(selector, root);
    if (image.getAttribute("src") !== where) image.src = where;
  }

  const pressed = (name, yes) => one(`[data-do=${name}]`, root).setAttribute("aria-pressed", yes);

  function status() {
    const photo = shown(), busy = one(".fw-busy", root), bad = one(".fw-wrong", root);
    busy.hidden = !photo || photo.status === "ready" || photo.status === "wrong";
    one("span", busy).textContent = photo ? photo.said : "";
    bad.hidden = !photo || photo.status !== "wrong";
    one("p", bad).textContent = photo ? photo.said : "";
  }

  function strip() {
    const place = one(".fw-strip", root), focused = document.activeElement?.dataset?.at;
    place.replaceChildren(...state.photos.map((photo, at) => {
      const item = document.createElement("div");
      item.className = `fw-item fw-${photo.status}${photo.found?.clip ? " fw-moving" : ""}`;
      const pick = document.createElement("button");
      pick.type = "button";
      pick.dataset.at = at;
      pick.title = photo.status === "wrong" ? photo.said : photo.name;
      pick.setAttribute("aria-label", `${photo.name}${photo.status === "wrong" ? ", refused" : photo.status === "ready" ? "" : ", in the works"}`);
      if (at === state.current) pick.setAttribute("aria-current", "true");
      if (photo.status === "ready") {
        const image = new Image();
        image.alt = "";
        image.src = `/page/photos/${photo.token}/thumb`;
        pick.append(image);
      }
      pick.onclick = () => { state.current = at; draw(); };
      const away = Object.assign(document.createElement("button"), { type: "button", className: "fw-away", textContent: "×" });
      away.setAttribute("aria-label", `Remove ${photo.name}`);
      away.onclick = () => remove(photo);
      item.append(pick, away);
      return item;
    }));
    const more = Object.assign(document.createElement("button"), { type: "button", className: "fw-more", textContent: "+" });
    more.dataset.do = "pick";
    more.setAttribute("aria-label", "Add photos or clips");
    place.append(more);
    if (focused !== undefined) one(`[data-at="${focused}"]`, place)?.focus();
  }

  const WORDS = { haze: "haze", rain: "rain", both: "haze and rain", none: "no weather" };
  const verdict = (found) => `${WORDS[found.weather.decided]} (${Math.round(100 * found.weather.sure)} % sure)`;

  function found() {
    const photo = shown(), told = photo && photo.status === "ready" ? photo.found : null;
    one(".fw-verdict").textContent = told ? capital(verdict(told)) : photo ? "Looking" : "Waiting for a photo";
    if (photo && photo.status === "wrong") one(".fw-verdict").textContent = "Not restored";
    for (const kind of ["haze", "rain"]) {
      one(`#fw-${kind}`).value = told ? told.weather[kind] : 0;
      one(`#fw-${kind}-said`).textContent = told ? percent(told.weather[kind]) : "";
    }
    const parts = told ? told.parts.map((part) => `${part.amount < 0.9 ? `${percent(part.amount)} of the ` : ""}${part.weather} with ${part.model}`) : [];
    one(".fw-done").textContent = !told ? "" : parts.length ? `Taken out: ${parts.join(", then ")}.` : "Nothing is taken out: the photo stays as it is.";
    const ready = state.photos.filter((one) => one.status === "ready" && clips.link(one) !== null);
    one(".fw-all").hidden = ready.length < 2;
    one(".fw-all").textContent = `Download all ${ready.length}`;
  }
  const capital = (text) => text[0].toUpperCase() + text.slice(1);

  function links() {
    const photo = shown(), link = one(".fw-download"), clip = clips.link(photo);
    clips.draw(photo);
    if (!link) return;
    const ready = photo && photo.status === "ready" && clip !== null;
    link.setAttribute("aria-disabled", !ready);
    if (!ready) { link.removeAttribute("href"); link.textContent = "Download"; return; }
    const [href, name] = clip || [url(photo, "file", state.strength), photo.found.download];
    link.href = href;
    link.setAttribute("download", name);
    link.textContent = `Download ${name.split(".").pop().toUpperCase()}`;
  }

  // ---- strength and settings ---------------------------------------------------------------------------------------

  function strength(value) {
    state.strength = Math.min(1, Math.max(0, Number(value) / 100));
    links();
    const photo = shown(), exact = one(".fw-exact", root);
    one(".fw-after", root).style.opacity = state.strength;
    exact.classList.remove("fw-there");
    clearTimeout(timer);
    if (!photo || photo.status !== "ready" || !photo.found.exact || !photo.found.parts.length) return;
    if (state.strength === 0 || state.strength === 1) return;
    const where = url(photo, "after", state.strength);
    timer = setTimeout(() => {
      exact.onload = () => { if (exact.getAttribute("src") === where) exact.classList.add("fw-there"); };
      if (exact.getAttribute("src") === where && exact.complete) exact.onload(); else exact.src = where;
    }, SOON);
  }

  function settings(model, weather, guard) {
    if (model === state.model && weather === state.weather && guard === state.guard) return;
    Object.assign(state, { model, weather, guard });
    for (const photo of state.photos) {
      if (photo.status !== "working") Object.assign(photo, { status: "waiting", said: "waiting" });
    }
    one("#fw-weather").classList.toggle("fw-off", model !== "auto");
    draw();
    next();
  }

  function lost() {  // an image did not come: the photo is gone with a server, or the server is away or busy
    const photo = shown();
    if (!photo || photo.status !== "ready") return;
    for (const name of IMAGES) one(name, root).removeAttribute("src");
    photo.lost = (photo.lost || 0) + 1;
    if (photo.lost > MOST_LOST) return wrong(photo, `${photo.name}: cannot be shown here; the server may be too busy`);
    Object.assign(photo, { status: "waiting", said: "fetching it again" });
    draw();
    next();
  }

  // ---- before and after ----------------------------------------------------------------------------------------------

  function layout() {
    const photo = shown(), stage = one(".fw-stage", root), canvas = one(".fw-canvas", root), scroll = one(".fw-scroll", root);
    if (!photo || !photo.found || photo.status !== "ready" || !stage.clientWidth) { canvas.style.width = canvas.style.height = ""; return; }
    const { width, height } = photo.found, tall = document.fullscreenElement ? innerHeight - 130 - one(".fw-clip", root).offsetHeight : Math.max(260, 0.7 * innerHeight);
    const fit = Math.min(stage.clientWidth / width, tall / height, MOST_ENLARGED);
    const scale = state.full ? 1 / devicePixelRatio : fit;
    canvas.style.width = `${width * scale}px`;
    canvas.style.height = `${height * scale}px`;
    scroll.style.height = state.full ? `${Math.min(tall, height * scale)}px` : "";
    stage.classList.toggle("fw-full", state.full);
    divide();
  }

  function visible() {
    const stage = one(".fw-stage", root).getBoundingClientRect(), canvas = one(".fw-canvas", root).getBoundingClientRect();
    const left = Math.max(stage.left, canvas.left), right = Math.min(stage.right, canvas.right);
    return { left, width: Math.max(1, right - left), stage: stage.left, canvas: canvas.left };
  }

  function divide() {
    const seen = visible(), at = seen.left + state.place * seen.width, cut = `inset(0 0 0 ${at - seen.canvas}px)`;
    for (const name of [".fw-after", ".fw-exact", ".fw-map", ".fw-film-after"]) one(name, root).style.clipPath = cut;
    const handle = one(".fw-handle", root);
    handle.style.left = `${at - seen.stage}px`;
    handle.setAttribute("aria-valuenow", Math.round(100 * state.place));
    handle.setAttribute("aria-valuetext", `${Math.round(100 * state.place)} % before`);
    one(".fw-map", root).style.display = state.map ? "block" : "none";
    one(".fw-tag-before", root).style.left = `${seen.left - seen.stage + 12}px`;
    one(".fw-tag-after", root).style.left = `${seen.left - seen.stage + seen.width - 12}px`;
  }

  function drag(event) {
    const handle = one(".fw-handle", root), on = event.target.closest(".fw-handle");
    if (event.button || event.target.closest(".fw-wrong") || (!on && state.full)) return;
    if (shown()?.status !== "ready") return;
    const move = (now) => {
      const seen = visible();
      state.place = Math.min(1, Math.max(0, (now.clientX - seen.left) / seen.width));
      divide();
    };
    const end = () => { removeEventListener("pointermove", move); removeEventListener("pointerup", end); removeEventListener("pointercancel", end); };
    addEventListener("pointermove", move);
    addEventListener("pointerup", end);
    addEventListener("pointercancel", end);
    handle.focus({ preventScroll: true });
    move(event);
    if (event.pointerType === "mouse") event.preventDefault();
  }

  function keys(event) {
    const step = event.shiftKey ? 0.1 : 0.02;
    const places = { ArrowLeft: state.place - step, ArrowRight: state.place + step, ArrowDown: state.place - step,
                     ArrowUp: state.place + step, PageDown: state.place - 0.1, PageUp: state.place + 0.1, Home: 0, End: 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    state.place = Math.min(1, Math.max(0, places[event.key]));
    divide();
  }

  const doings = {
    pick: () => one("#fw-input").click(),
    clear: () => { state.map = false; draw(); },
    map: () => { state.map = true; draw(); },
    fit: () => { state.full = false; draw(); },
    full: () => { state.full = true; draw(); const at = one(".fw-scroll", root); at.scrollLeft = (at.scrollWidth - at.clientWidth) / 2; at.scrollTop = (at.scrollHeight - at.clientHeight) / 2; },
    screen: () => (document.fullscreenElement ? document.exitFullscreen() : one(".fw-work", root).requestFullscreen()),
    ...clips.doings,
    again: () => { Object.assign(shown(), { status: "waiting", said: "waiting", lost: 0 }); draw(); next(); },
  };

  async function all() {
    for (const photo of state.photos.filter((one) => one.status === "ready" && clips.link(one) !== null)) {
      const [href, download] = clips.link(photo) || [url(photo, "file", state.strength), photo.found.download];
      const link = Object.assign(document.createElement("a"), { href, download });
      link.click();
      await pause(400);
    }
  }

  function begin(element) {
    root = one(".fw-viewer", element);
    root.classList.add("fw-begun");
    clips.begin(root, { state, shown, query, ask, say, draw, next });
    root.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]"), chosen = event.target.closest("[data-example]");
      if (button) doings[button.dataset.do]();
      if (chosen) example(chosen.dataset.example);
    });
    const input = one("#fw-input");
    input.addEventListener("change", () => { add(input.files); input.value = ""; });
    one(".fw-stage", root).addEventListener("pointerdown", drag);
    one(".fw-handle", root).addEventListener("keydown", keys);
    one(".fw-scroll", root).addEventListener("scroll", divide, { passive: true });
    for (const name of IMAGES) one(name, root).addEventListener("error", lost);
    one(".fw-after", root).addEventListener("load", () => { if (shown()) shown().lost = 0; });
    new ResizeObserver(layout).observe(one(".fw-stage", root));
    document.addEventListener("fullscreenchange", layout);
    document.addEventListener("click", (event) => { if (event.target.closest(".fw-all")) all(); });
    document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("fw-over"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("fw-over"); });
    document.addEventListener("drop", (event) => { event.preventDefault(); document.body.classList.remove("fw-over"); add(event.dataTransfer.files); });
    document.addEventListener("paste", (event) => { if (event.clipboardData?.files.length) add(event.clipboardData.files); });
    const kept = localStorage.getItem("fairweather-dark");
    if (kept !== null) document.body.classList.toggle("dark", kept === "yes");
  }

  function dark() {
    localStorage.setItem("fairweather-dark", document.body.classList.toggle("dark") ? "yes" : "no");
  }

  window.fairweather = { begin, strength, settings, dark, state };
})();
