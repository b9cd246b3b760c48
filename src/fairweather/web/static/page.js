// The page's own part: photos are sent one by one to /page/photos, restored there, and shown before and after; what is
// special about videos is in videos.js.
// Strength is mixed here at once, by the opacity of the result; where maps restore the photo, the server's exact result
// follows a moment later without running the network again. Files stay in memory: a restarted server gets them again.
(() => {
  "use strict";
  const limits = window.fairweatherLimits, videos = window.fairweatherVideos;
  const MAX_ACTIVE = 2, EXACT_DELAY = 250, RETRY_DELAY = 2000, MAX_SCALE = 2, MAX_RELOADS = 4;
  const IMAGES = [".fw-before", ".fw-after", ".fw-map"];
  const state = { photos: [], selected: -1, model: "auto", weather: "auto", guard: true, strength: 1,
                  divider: 0.5, map: false, full: false, active: 0 };
  let root, timer;

  const find = (selector, base = document) => base.querySelector(selector);
  const current = () => state.photos[state.selected];
  const percent = (value) => `${Math.round(100 * value)} %`;
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const announce = (text) => { find("#fw-status").textContent = text; };

  function query(photo, strength) {
    const { model, weather, guard } = photo.settings;
    const params = new URLSearchParams({ model, weather: model === "auto" ? weather : "auto", guard });
    if (strength !== undefined) params.set("strength", strength);
    return params;
  }
  const url = (photo, what, strength) => `/page/photos/${photo.token}/${what}?${query(photo, strength)}`;

  // ---- uploads -------------------------------------------------------------------------------------------

  function add(files) {
    const added = [...files].map((file) => ({ file, name: file.name || "photo", status: "waiting", message: "waiting" }));
    if (!added.length) return;
    state.photos.push(...added);
    if (!current() || current().status !== "ready") state.selected = state.photos.length - added.length;
    find(".fw-empty", root).hidden = true;
    find(".fw-work", root).hidden = false;
    draw();
    next();
  }

  async function example(name) {
    const answer = await fetch(`/page/examples/${encodeURIComponent(name)}`);
    add([new File([await answer.blob()], name, { type: "image/jpeg" })]);
  }

  function next() {
    while (state.active < MAX_ACTIVE) {
      const photo = state.photos.find((one) => one.status === "waiting");
      if (!photo) return;
      state.active += 1;
      restore(photo).catch((error) => fail(photo, String(error))).finally(() => { state.active -= 1; next(); });
    }
  }

  async function restore(photo) {
    photo.status = "working";
    if (photo.file.size > limits.bytes) {
      return fail(photo, `${photo.name} is larger than ${limits.bytes / 1e6} MB, the limit of this server: make it smaller`);
    }
    for (;;) {
      photo.settings = { model: state.model, weather: state.weather, guard: state.guard };
      const used = photo.settings;
      if (!photo.token) {
        const sent = await call(photo, "POST", `/page/photos?name=${encodeURIComponent(photo.name)}`, photo.file);
        if (!sent) return;
        photo.token = sent.token;
      }
      setMessage(photo, "detecting and removing the weather");
      const result = await call(photo, "POST", url(photo, "restore"));
      if (result === "gone") { photo.token = null; continue; }
      if (!result) return;
      if (used.model !== state.model || used.weather !== state.weather || used.guard !== state.guard) continue;
      photo.result = result;
      photo.status = "ready";
      photo.message = "";
      announce(`${photo.name}: ${verdict(result)}`);
      return draw();
    }
  }

  // The JSON of the response; "gone" if the photo has to be sent again; undefined if it was rejected.
  async function call(photo, method, where, body) {
    for (;;) {
      const answer = await request(photo, method, where, body).catch(() => null);
      if (!state.photos.includes(photo)) return void videos.unwanted(answer?.data);
      if (answer === null) {
        setMessage(photo, "the server does not respond; trying again");
        await pause(RETRY_DELAY);
      } else if (answer.status === 503) {
        setMessage(photo, "the server is busy; trying again");
        await pause(1000 * (answer.retry || 5));
      } else if (answer.status === 404 && answer.data.error?.kind === "gone") {
        return "gone";
      } else if (answer.status >= 400) {
        fail(photo, answer.data.error?.message || `the server responded with status ${answer.status}`);
        return null;
      } else {
        return answer.data;
      }
    }
  }

  function request(photo, method, where, body) {
    return new Promise((done, failed) => {
      const xhr = new XMLHttpRequest();
      xhr.open(method, where);
      if (body) {
        xhr.setRequestHeader("Content-Type", "application/octet-stream");
        xhr.upload.onprogress = (now) => setMessage(photo, `sending, ${percent(now.loaded / now.total)}`);
      }
      xhr.onload = () => {
        let data = {};
        try { data = JSON.parse(xhr.responseText); } catch { /* not JSON: from a proxy */ }
        done({ status: xhr.status, retry: Number(xhr.getResponseHeader("Retry-After")), data });
      };
      xhr.onerror = xhr.onabort = xhr.ontimeout = () => failed(new Error("no answer"));
      xhr.send(body || null);
    });
  }

  function setMessage(photo, text) {
    photo.message = text;
    if (photo === current()) status();
  }

  function fail(photo, message) {
    photo.status = "error";
    photo.message = message;
    announce(message);
    draw();
  }

  function remove(photo) {
    const at = state.photos.indexOf(photo);
    state.photos.splice(at, 1);
    videos.remove(photo);
    if (photo.token) fetch(`/page/photos/${photo.token}`, { method: "DELETE" }).catch(() => null);
    if (state.selected > at || state.selected >= state.photos.length) state.selected -= 1;
    if (state.selected < 0 && state.photos.length) state.selected = 0;
    find(".fw-empty", root).hidden = state.photos.length > 0;
    find(".fw-work", root).hidden = !state.photos.length;
    draw();
  }

  // ---- drawing ----------------------------------------------------------------------------------------------

  function draw() {
    strip();
    status();
    drawWeather();
    const photo = current(), ready = photo && photo.status === "ready";
    find(".fw-stage", root).classList.toggle("fw-ready", Boolean(ready));
    find(".fw-name", root).textContent = photo ? photo.name + (photo.result ? `, ${photo.result.width} × ${photo.result.height}` : "") : "";
    pressed("clear", !state.map); pressed("map", state.map);
    pressed("fit", !state.full); pressed("full", state.full);
    find(".fw-legend", root).hidden = !(ready && state.map);
    find(".fw-tag-after", root).textContent = state.map ? "haze" : "after";
    if (ready) {
      source(".fw-before", `/page/photos/${photo.token}/before`);
      source(".fw-after", photo.result.models.length ? url(photo, "after", 1) : `/page/photos/${photo.token}/before`);
      if (state.map) source(".fw-map", url(photo, "haze-map"));
    }
    strength(100 * state.strength);
    layout();
  }

  function source(selector, where) {
    const image = find(selector, root);
    if (image.getAttribute("src") !== where) image.src = where;
  }

  const pressed = (name, yes) => find(`[data-do=${name}]`, root).setAttribute("aria-pressed", yes);

  function status() {
    const photo = current(), busy = find(".fw-busy", root), bad = find(".fw-error", root);
    busy.hidden = !photo || photo.status === "ready" || photo.status === "error";
    find("span", busy).textContent = photo ? photo.message : "";
    bad.hidden = !photo || photo.status !== "error";
    find("p", bad).textContent = photo ? photo.message : "";
  }

  function strip() {
    const list = find(".fw-strip", root), focused = document.activeElement?.dataset?.at;
    list.replaceChildren(...state.photos.map((photo, at) => {
      const item = document.createElement("div");
      item.className = `fw-item fw-${photo.status}${photo.result?.video ? " fw-is-video" : ""}`;
      const pick = document.createElement("button");
      pick.type = "button";
      pick.dataset.at = at;
      pick.title = photo.status === "error" ? photo.message : photo.name;
      pick.setAttribute("aria-label", `${photo.name}${photo.status === "error" ? ", failed" : photo.status === "ready" ? "" : ", in progress"}`);
      if (at === state.selected) pick.setAttribute("aria-current", "true");
      if (photo.status === "ready") {
        const image = new Image();
        image.alt = "";
        image.src = `/page/photos/${photo.token}/thumbnail`;
        pick.append(image);
      }
      pick.onclick = () => { state.selected = at; draw(); };
      const removeButton = Object.assign(document.createElement("button"), { type: "button", className: "fw-remove", textContent: "×" });
      removeButton.setAttribute("aria-label", `Remove ${photo.name}`);
      removeButton.onclick = () => remove(photo);
      item.append(pick, removeButton);
      return item;
    }));
    const more = Object.assign(document.createElement("button"), { type: "button", className: "fw-more", textContent: "+" });
    more.dataset.do = "pick";
    more.setAttribute("aria-label", "Add photos or videos");
    list.append(more);
    if (focused !== undefined) find(`[data-at="${focused}"]`, list)?.focus();
  }

  const WEATHER = { haze: "haze", rain: "rain", both: "haze and rain", none: "no weather" };
  const verdict = ({ weather }) => `${WEATHER[weather.decision]} (${Math.round(100 * weather.confidence)} % sure)`;

  function drawWeather() {
    const photo = current(), result = photo && photo.status === "ready" ? photo.result : null;
    find(".fw-verdict").textContent = result ? capital(verdict(result)) : photo ? "Detecting" : "Waiting for a photo";
    if (photo && photo.status === "error") find(".fw-verdict").textContent = "Not restored";
    for (const kind of ["haze", "rain"]) {
      find(`#fw-${kind}`).value = result ? result.weather[kind] : 0;
      find(`#fw-${kind}-value`).textContent = result ? percent(result.weather[kind]) : "";
    }
    const models = result ? result.models.map(({ weather, model, amount }) => `${amount < 0.9 ? `${percent(amount)} of the ` : ""}${weather} with ${model}`) : [];
    find(".fw-applied").textContent = !result ? "" : models.length ? `Removed: ${models.join(", then ")}.` : "Nothing is removed: the photo is unchanged.";
    const missing = result && (photo.job?.missing || result.video?.missing);
    if (missing) find(".fw-applied").textContent += ` The video is truncated or damaged: ${missing}.`;
    const ready = state.photos.filter((one) => one.status === "ready" && videos.link(one) !== null);
    find(".fw-all").hidden = ready.length < 2;
    find(".fw-all").textContent = `Download all ${ready.length}`;
  }
  const capital = (text) => text[0].toUpperCase() + text.slice(1);

  function links() {
    const photo = current(), link = find(".fw-download"), video = videos.link(photo);
    videos.draw(photo);
    if (!link) return;
    const ready = photo && photo.status === "ready" && video !== null;
    link.setAttribute("aria-disabled", !ready);
    if (!ready) { link.removeAttribute("href"); link.textContent = "Download"; return; }
    const [href, name] = video || [url(photo, "file", state.strength), photo.result.download];
    link.href = href;
    link.setAttribute("download", name);
    link.textContent = `Download ${name.split(".").pop().toUpperCase()}`;
  }

  // ---- strength and settings ---------------------------------------------------------------------------------------

  function strength(value) {
    state.strength = Math.min(1, Math.max(0, Number(value) / 100));
    links();
    const photo = current(), exact = find(".fw-exact", root);
    find(".fw-after", root).style.opacity = state.strength;
    exact.classList.remove("fw-loaded");
    clearTimeout(timer);
    if (!photo || photo.status !== "ready" || !photo.result.instant_strength || !photo.result.models.length) return;
    if (state.strength === 0 || state.strength === 1) return;
    const where = url(photo, "after", state.strength);
    timer = setTimeout(() => {
      exact.onload = () => { if (exact.getAttribute("src") === where) exact.classList.add("fw-loaded"); };
      if (exact.getAttribute("src") === where && exact.complete) exact.onload(); else exact.src = where;
    }, EXACT_DELAY);
  }

  function settings(model, weather, guard) {
    if (model === state.model && weather === state.weather && guard === state.guard) return;
    Object.assign(state, { model, weather, guard });
    for (const photo of state.photos) {
      if (photo.status !== "working") Object.assign(photo, { status: "waiting", message: "waiting" });
    }
    find("#fw-weather").classList.toggle("fw-off", model !== "auto");
    draw();
    next();
  }

  function reload() {  // an image failed to load: the server was restarted, or is unreachable or busy
    const photo = current();
    if (!photo || photo.status !== "ready") return;
    for (const name of IMAGES) find(name, root).removeAttribute("src");
    photo.reloads = (photo.reloads || 0) + 1;
    if (photo.reloads > MAX_RELOADS) return fail(photo, `${photo.name} cannot be shown: the server may be too busy, try again later`);
    Object.assign(photo, { status: "waiting", message: "loading again" });
    draw();
    next();
  }

  // ---- before and after ----------------------------------------------------------------------------------------------

  function layout() {
    const photo = current(), stage = find(".fw-stage", root), canvas = find(".fw-canvas", root), scroll = find(".fw-scroll", root);
    if (!photo || !photo.result || photo.status !== "ready" || !stage.clientWidth) { canvas.style.width = canvas.style.height = ""; return; }
    const { width, height } = photo.result, tall = document.fullscreenElement ? innerHeight - 130 - find(".fw-video", root).offsetHeight : Math.max(260, 0.7 * innerHeight);
    const fit = Math.min(stage.clientWidth / width, tall / height, MAX_SCALE);
    const scale = state.full ? 1 / devicePixelRatio : fit;
    canvas.style.width = `${width * scale}px`;
    canvas.style.height = `${height * scale}px`;
    scroll.style.height = state.full ? `${Math.min(tall, height * scale)}px` : "";
    stage.classList.toggle("fw-full", state.full);
    divide();
  }

  function visible() {
    const stage = find(".fw-stage", root).getBoundingClientRect(), canvas = find(".fw-canvas", root).getBoundingClientRect();
    const left = Math.max(stage.left, canvas.left), right = Math.min(stage.right, canvas.right);
    return { left, width: Math.max(1, right - left), stage: stage.left, canvas: canvas.left };
  }

  function divide() {
    const area = visible(), at = area.left + state.divider * area.width, cut = `inset(0 0 0 ${at - area.canvas}px)`;
    for (const name of [".fw-after", ".fw-exact", ".fw-map", ".fw-video-after"]) find(name, root).style.clipPath = cut;
    const handle = find(".fw-handle", root);
    handle.style.left = `${at - area.stage}px`;
    handle.setAttribute("aria-valuenow", Math.round(100 * state.divider));
    handle.setAttribute("aria-valuetext", `${Math.round(100 * state.divider)} % before`);
    find(".fw-map", root).style.display = state.map ? "block" : "none";
    find(".fw-tag-before", root).style.left = `${area.left - area.stage + 12}px`;
    find(".fw-tag-after", root).style.left = `${area.left - area.stage + area.width - 12}px`;
  }

  function drag(event) {
    const handle = find(".fw-handle", root), on = event.target.closest(".fw-handle");
    if (event.button || event.target.closest(".fw-error") || (!on && state.full)) return;
    if (current()?.status !== "ready") return;
    const move = (now) => {
      const area = visible();
      state.divider = Math.min(1, Math.max(0, (now.clientX - area.left) / area.width));
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
    const places = { ArrowLeft: state.divider - step, ArrowRight: state.divider + step, ArrowDown: state.divider - step,
                     ArrowUp: state.divider + step, PageDown: state.divider - 0.1, PageUp: state.divider + 0.1, Home: 0, End: 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    state.divider = Math.min(1, Math.max(0, places[event.key]));
    divide();
  }

  const actions = {
    pick: () => find("#fw-input").click(),
    clear: () => { state.map = false; draw(); },
    map: () => { state.map = true; draw(); },
    fit: () => { state.full = false; draw(); },
    full: () => { state.full = true; draw(); const at = find(".fw-scroll", root); at.scrollLeft = (at.scrollWidth - at.clientWidth) / 2; at.scrollTop = (at.scrollHeight - at.clientHeight) / 2; },
    screen: () => (document.fullscreenElement ? document.exitFullscreen() : find(".fw-work", root).requestFullscreen()),
    ...videos.actions,
    again: () => { Object.assign(current(), { status: "waiting", message: "waiting", reloads: 0 }); draw(); next(); },
  };

  async function all() {
    for (const photo of state.photos.filter((one) => one.status === "ready" && videos.link(one) !== null)) {
      const [href, download] = videos.link(photo) || [url(photo, "file", state.strength), photo.result.download];
      const link = Object.assign(document.createElement("a"), { href, download });
      link.click();
      await pause(400);
    }
  }

  function start(element) {
    root = find(".fw-viewer", element);
    root.classList.add("fw-started");
    videos.start(root, { state, current, query, call, announce, draw, next });
    root.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]"), chosen = event.target.closest("[data-example]");
      if (button) actions[button.dataset.do]();
      if (chosen) example(chosen.dataset.example);
    });
    const input = find("#fw-input");
    input.addEventListener("change", () => { add(input.files); input.value = ""; });
    find(".fw-stage", root).addEventListener("pointerdown", drag);
    find(".fw-handle", root).addEventListener("keydown", keys);
    find(".fw-scroll", root).addEventListener("scroll", divide, { passive: true });
    for (const name of IMAGES) find(name, root).addEventListener("error", reload);
    find(".fw-after", root).addEventListener("load", () => { if (current()) current().reloads = 0; });
    new ResizeObserver(layout).observe(find(".fw-stage", root));
    document.addEventListener("fullscreenchange", layout);
    document.addEventListener("click", (event) => { if (event.target.closest(".fw-all")) all(); });
    document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("fw-over"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("fw-over"); });
    document.addEventListener("drop", (event) => { event.preventDefault(); document.body.classList.remove("fw-over"); add(event.dataTransfer.files); });
    document.addEventListener("paste", (event) => { if (event.clipboardData?.files.length) add(event.clipboardData.files); });
    const stored = localStorage.getItem("fairweather-dark");
    if (stored !== null) document.body.classList.toggle("dark", stored === "yes");
  }

  function dark() {
    localStorage.setItem("fairweather-dark", document.body.classList.toggle("dark") ? "yes" : "no");
  }

  window.fairweather = { start, strength, settings, dark, state };
})();
