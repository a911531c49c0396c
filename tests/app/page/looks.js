// What can be asked of a page as it is drawn. looks.py evaluates this object.
{
  // Return the visible texts whose contrast with what is behind them is below `least`.
  lowContrast(least) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const known = new Map();
    const parse = (colour) => {  // any notation, to red, green, blue and alpha
      if (!known.has(colour)) {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
        known.set(colour, [red, green, blue, alpha / 255]);
      }
      return known.get(colour);
    };
    const over = ([r, g, b, a], [R, G, B]) =>
      [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
    const ground = (element) => {
      if (!element) return [255, 255, 255];
      const colour = parse(getComputedStyle(element).backgroundColor);
      return colour[3] === 1 ? colour.slice(0, 3) : over(colour, ground(element.parentElement));
    };
    const luminance = (colour) => {
      const [r, g, b] = colour
        .map((value) => value / 255)
        .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const opacity = (element) => {
      let all = 1;
      for (; element; element = element.parentElement) all *= getComputedStyle(element).opacity;
      return all;
    };
    const found = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode());) {
      const text = node.textContent.trim();
      const element = node.parentElement;
      const visible = { opacityProperty: true, visibilityProperty: true };
      if (!text || !element.checkVisibility(visible)) continue;
      if (element.closest(":disabled, [aria-disabled=true], script, style")) continue;
      const style = getComputedStyle(element);
      const box = element.getBoundingClientRect();
      if (box.width <= 1 || box.height <= 1) continue;  // for screen readers alone
      const colour = parse(element instanceof SVGElement ? style.fill : style.color);
      const below = ground(element);
      const drawn = over([...colour.slice(0, 3), colour[3] * opacity(element)], below);
      const [light, dark] = [luminance(drawn), luminance(below)].sort((a, b) => b - a);
      const contrast = (light + 0.05) / (dark + 0.05);
      if (contrast < least) {
        const name = `${element.localName}.${element.getAttribute("class") ?? ""}`;
        found.add(`${contrast.toFixed(2)}: ${name} ${JSON.stringify(text.slice(0, 40))}`);
      }
    }
    return [...found];
  },

  // Return what makes the page scroll sideways.
  widerThanWindow() {
    const root = document.documentElement;
    if (root.scrollWidth <= root.clientWidth) return [];
    const wide = [...document.body.querySelectorAll("*")]
      .filter((element) => element.getBoundingClientRect().right > root.clientWidth + 1)
      .map((element) => `${element.localName}.${element.getAttribute("class") ?? ""}`);
    return [`${root.scrollWidth} of ${root.clientWidth} pixels`, ...wide.slice(0, 10)];
  },

  // Return what has the focus, and whether one sees that.
  focus() {
    const element = document.activeElement;
    if (!element || element === document.body) return { name: "", visible: false };
    const style = getComputedStyle(element);
    const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
    const label = element.labels?.[0]?.textContent;
    const name = element.getAttribute("aria-label") || label || element.textContent;
    return {
      name: name.replace(/\s+/g, " ").trim().slice(0, 80),
      role: element.getAttribute("role") || element.localName,
      visible: outlined || style.boxShadow !== "none",
    };
  },
}
